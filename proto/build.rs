//! Compiles the contract with protox: no protoc, no cmake.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: [&str; 5] = [
    "muster/v1/common.proto",
    "muster/v1/agent.proto",
    "muster/v1/enrollment.proto",
    "muster/v1/connection.proto",
    "muster/v1/fleet.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=muster");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_source_info(true)
        .include_imports(true)
        .open_files(FILES)?;
    let set = compiler.file_descriptor_set();
    // Reflection serves this; comments are of no use there.
    let mut bare = set.clone();
    for file in &mut bare.file {
        file.source_code_info = None;
    }
    fs::write(out.join("descriptor.bin"), bare.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(true)
        .bytes(".")
        .codec_path("crate::codec::SmallBuffers")
        .compile_fds(set)?;
    Ok(())
}
