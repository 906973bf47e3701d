//! Linux: procfs, sysfs, systemd and logind over the system bus.

mod bus;
pub mod domain;
pub mod kerberos;
pub mod machine;
pub mod plugin;
pub mod power;
pub mod processes;
pub mod proxies;
pub mod resources;
pub mod sessions;
pub mod sockets;
pub mod units;
