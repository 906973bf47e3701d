//! How the network is tried, step by step, with the words for what went wrong.
//!
//! Every read is bounded in bytes and time, and nothing here keeps or returns a body.

pub mod dns;
pub mod hosts_file;
pub mod http;
pub mod ldap;
pub mod listener;
pub mod rdp;
pub mod tcp;
pub mod tls;
