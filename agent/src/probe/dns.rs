//! What each name server of this machine says of a name.
//!
//! Programs look names up through the C library, and so do the checks. Only that cannot tell which
//! server said what: once something has failed, each server is asked by itself here.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{op::ResponseCode, rr::RData},
};

use super::tcp::took;

/// The file, unless a test has another.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The C library reads three servers.
const MAX_SERVERS: usize = 3;
/// Records of one service that are used: a site has a few controllers near it.
const MAX_SERVICES: usize = 8;

/// What one server said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said {
    /// These addresses.
    Addresses(BTreeSet<IpAddr>),
    /// There is no such name.
    NoSuchName,
    /// The name is there and has no address.
    NoAddress,
    /// Nothing.
    Silent,
    /// It refused or failed, with its word.
    Failed(String),
}

/// One server's answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The server.
    pub server: IpAddr,
    /// What it said.
    pub said: Said,
    /// The same as a step.
    pub step: String,
}

/// A host that offers a service, best first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceHost {
    /// Its name without the last dot.
    pub name: String,
    /// Its port.
    pub port: u16,
}

/// Why a service's hosts are not known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServiceError {
    /// Nobody answers.
    #[error("no name server answers (tried {0})")]
    Silent(String),
    /// There are no such records.
    #[error("no such records")]
    None,
    /// They refuse or fail.
    #[error("the name server fails: {0}")]
    Failed(String),
    /// None is set up.
    #[error("no name server is set up in /etc/resolv.conf")]
    NoServer,
}

/// Name servers that this machine is set up with, as the C library reads them. Blocks for a small
/// file.
#[must_use]
pub fn servers(path: &Path) -> Vec<IpAddr> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver"))
            .then(|| words.next()?.split('%').next()?.parse().ok())
            .flatten()
    });
    servers.take(MAX_SERVERS).collect()
}

/// Asks each server for the addresses of `host`.
pub async fn ask_each(host: &str, servers: &[IpAddr], limit: Duration) -> Vec<Answer> {
    let name = absolute(host);
    join_all(servers.iter().map(|server| ask(*server, &name, limit))).await
}

async fn ask(server: IpAddr, name: &str, limit: Duration) -> Answer {
    let begun = Instant::now();
    let said = match resolver(&[server], limit) {
        Ok(resolver) => match resolver.lookup_ip(name).await {
            Ok(found) => Said::Addresses(found.iter().collect()),
            Err(error) => said(&error),
        },
        Err(error) => Said::Failed(error.to_string()),
    };
    let shown = match &said {
        Said::Addresses(found) => {
            let found: Vec<_> = found.iter().map(IpAddr::to_string).collect();
            format!("says {}", found.join(", "))
        }
        Said::NoSuchName => "says there is no such name (NXDOMAIN)".to_owned(),
        Said::NoAddress => "knows the name, but no address of it".to_owned(),
        Said::Silent => "does not answer".to_owned(),
        Said::Failed(word) => format!("fails: {word}"),
    };
    let step = format!("dns: server {server} {shown} ({})", took(begun));
    Answer { server, said, step }
}

/// The hosts that offer `service`, such as `_ldap._tcp.example.org`, best first.
///
/// # Errors
/// If there are none or nobody says.
pub async fn service(
    service: &str,
    servers: &[IpAddr],
    limit: Duration,
) -> Result<Vec<ServiceHost>, ServiceError> {
    if servers.is_empty() {
        return Err(ServiceError::NoServer);
    }
    let resolver =
        resolver(servers, limit).map_err(|error| ServiceError::Failed(error.to_string()))?;
    let found = resolver.srv_lookup(absolute(service)).await;
    let found = found.map_err(|error| match said(&error) {
        Said::Silent => {
            let tried: Vec<_> = servers.iter().map(IpAddr::to_string).collect();
            ServiceError::Silent(tried.join(", "))
        }
        Said::Failed(word) => ServiceError::Failed(word),
        Said::NoSuchName | Said::NoAddress | Said::Addresses(_) => ServiceError::None,
    })?;
    let mut hosts: Vec<_> = found
        .answers()
        .iter()
        .filter_map(|record| match &record.data {
            RData::SRV(srv) => {
                let name = srv.target.to_utf8();
                let host = ServiceHost {
                    name: name.trim_end_matches('.').to_owned(),
                    port: srv.port,
                };
                Some((srv.priority, std::cmp::Reverse(srv.weight), host))
            }
            _ => None,
        })
        .collect();
    hosts.sort_by_key(|(priority, weight, _)| (*priority, *weight));
    hosts.truncate(MAX_SERVICES);
    Ok(hosts.into_iter().map(|(_, _, host)| host).collect())
}

fn resolver(servers: &[IpAddr], limit: Duration) -> Result<TokioResolver, NetError> {
    let servers = servers.iter().map(|ip| NameServerConfig::udp_and_tcp(*ip));
    let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
    let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.attempts = 1;
    options.timeout = limit;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    builder.build()
}

/// Search lists make another name of it.
fn absolute(name: &str) -> String {
    format!("{}.", name.trim_end_matches('.'))
}

fn said(error: &NetError) -> Said {
    match error {
        NetError::Timeout => Said::Silent,
        NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
            ResponseCode::NXDomain => Said::NoSuchName,
            ResponseCode::NoError => Said::NoAddress,
            code => Said::Failed(code.to_string()),
        },
        NetError::Dns(DnsError::ResponseCode(ResponseCode::NXDomain)) => Said::NoSuchName,
        other => Said::Failed(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_the_c_library_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let text = "# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.1\n\
                    nameserver fe80::1%eth0\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        std::fs::write(&path, text).unwrap();
        let found: Vec<_> = servers(&path).iter().map(IpAddr::to_string).collect();
        assert_eq!(found, ["192.0.2.1", "fe80::1", "192.0.2.2"]);
    }
}
