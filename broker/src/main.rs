//! `muster-broker`: see `muster_broker::cli`.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    muster_broker::cli::main(std::env::args_os()).await
}
