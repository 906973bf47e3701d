//! Names to addresses, and TCP connections.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::{Duration, Instant},
};

use muster_core::model::Remedy;
use tokio::{
    net::{TcpSocket, TcpStream, lookup_host},
    time::timeout,
};

use super::{
    dns::{self, Answer, Said},
    hosts_file,
};

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 4;

/// What went wrong at a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Stable cause code.
    pub code: &'static str,
    /// One sentence.
    pub message: String,
    /// What mends it.
    pub remedy: Remedy,
}

/// Milliseconds since `begun`, for a step's line.
#[must_use]
pub fn took(begun: Instant) -> String {
    format!("{} ms", begun.elapsed().as_millis())
}

/// Finds the addresses of `host`, and writes down how.
///
/// # Errors
/// If there are none, or nobody tells within `limit`.
pub async fn resolve(
    host: &str,
    port: u16,
    limit: Duration,
    steps: &mut Vec<String>,
) -> Result<Vec<SocketAddr>, Problem> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let name = host.to_owned();
    let path = Path::new(hosts_file::PATH);
    let entry = tokio::task::spawn_blocking(move || hosts_file::entry(path, &name));
    if let Ok(Some(found)) = entry.await {
        steps.push(format!(
            "hosts file: {} line {}: {}",
            hosts_file::PATH,
            found.line,
            found.text
        ));
    }
    let begun = Instant::now();
    // Half of the time is left to ask each server by itself when nothing comes.
    let answer = match timeout(limit / 2, lookup_host((host, port))).await {
        Ok(Ok(found)) => Ok(found.take(MAX_ADDRESSES).collect::<Vec<_>>()),
        Ok(Err(error)) => Err(dns_problem(host, &error)),
        Err(_) => Err(Problem {
            code: "DNS_TIMED_OUT",
            message: format!("no answer about the name {host} within {limit:?}"),
            remedy: Remedy::text("See whether the name servers in /etc/resolv.conf are reachable.")
                .command(format!("getent ahosts {host}")),
        }),
    };
    match answer {
        Ok(found) if !found.is_empty() => {
            let shown: Vec<_> = found
                .iter()
                .map(|address| address.ip().to_string())
                .collect();
            steps.push(format!(
                "name: {host} is {} ({})",
                shown.join(", "),
                took(begun)
            ));
            Ok(found)
        }
        Ok(_) => Err(no_such_name(host)),
        Err(problem) => {
            steps.push(format!("name: {} ({})", problem.message, took(begun)));
            Err(ask_servers(host, limit / 2, steps, problem).await)
        }
    }
}

/// The C library said that there is no address; each server says why.
async fn ask_servers(
    host: &str,
    limit: Duration,
    steps: &mut Vec<String>,
    problem: Problem,
) -> Problem {
    let path = Path::new(dns::RESOLV_CONF);
    let servers = tokio::task::spawn_blocking(move || dns::servers(path)).await;
    let servers = servers.unwrap_or_default();
    if servers.is_empty() {
        return Problem {
            code: "DNS_NO_SERVER",
            message: format!("{}; no name server is set up", problem.message),
            remedy: Remedy::text("Name this site's DNS servers in /etc/resolv.conf.")
                .command("resolvectl status || cat /etc/resolv.conf"),
        };
    }
    let answers = dns::ask_each(host, &servers, limit.mul_f32(0.8)).await;
    steps.extend(answers.iter().map(|answer| answer.step.clone()));
    name_problem(host, &answers).unwrap_or(problem)
}

/// What the servers' answers come to, worst first.
fn name_problem(host: &str, answers: &[Answer]) -> Option<Problem> {
    let those = |wanted: fn(&Said) -> bool| {
        let those = answers.iter().filter(|answer| wanted(&answer.said));
        those.map(|answer| answer.server).collect::<Vec<_>>()
    };
    let first = |servers: &[IpAddr]| servers.first().map(IpAddr::to_string).unwrap_or_default();
    let silent = those(|said| matches!(said, Said::Silent));
    let unknown = those(|said| matches!(said, Said::NoSuchName));
    let known = those(|said| matches!(said, Said::Addresses(_)));
    let failed = those(|said| matches!(said, Said::Failed(_)));
    let dig = |server: &str| format!("dig @{server} {host}");
    if !known.is_empty() && known.len() < answers.len() {
        let (yes, no) = (
            first(&known),
            answers.iter().find(|a| !known.contains(&a.server)),
        );
        let no = no
            .map(|answer| answer.server.to_string())
            .unwrap_or_default();
        return Some(Problem {
            code: "DNS_SPLIT",
            message: format!("name servers differ about {host}: {yes} knows it, {no} does not"),
            remedy: Remedy::text(format!("Mend or take away the name server {no}."))
                .command(dig(&no)),
        });
    }
    if !unknown.is_empty() {
        let server = first(&unknown);
        return Some(Problem {
            code: "DNS_NXDOMAIN",
            message: format!("the name server {server} says there is no name {host}"),
            remedy: Remedy::text(format!(
                "See whether {host} is spelt right; if so, create its record in the zone that \
                 {server} serves."
            ))
            .command(dig(&server)),
        });
    }
    if !silent.is_empty() && silent.len() == answers.len() {
        let server = first(&silent);
        return Some(Problem {
            code: "DNS_TIMED_OUT",
            message: format!("the name server {server} does not answer"),
            remedy: Remedy::text(format!(
                "Allow UDP and TCP port 53 to {server} in firewalls, or correct the server in \
                 /etc/resolv.conf."
            ))
            .command(dig(&server)),
        });
    }
    if !failed.is_empty() {
        let server = first(&failed);
        return Some(Problem {
            code: "DNS_FAILED",
            message: format!("the name server {server} fails or refuses for {host}"),
            remedy: Remedy::text(format!(
                "See whether {server} runs and answers this machine; its log says more."
            ))
            .command(dig(&server)),
        });
    }
    let server = answers.first()?.server.to_string();
    Some(Problem {
        code: "DNS_NO_ADDRESS",
        message: format!("{host} is known, but has no address"),
        remedy: Remedy::text("Create its A or AAAA record.").command(dig(&server)),
    })
}

fn no_such_name(host: &str) -> Problem {
    Problem {
        code: "DNS_NXDOMAIN",
        message: format!("no such name: {host}"),
        remedy: Remedy::text(format!(
            "See whether {host} is spelt right and known to the name servers of this machine."
        ))
        .command(format!("getent ahosts {host}")),
    }
}

fn dns_problem(host: &str, error: &io::Error) -> Problem {
    // The C library's errors arrive as text alone.
    let text = error.to_string();
    if text.contains("not known") || text.contains("No address") {
        return no_such_name(host);
    }
    Problem {
        code: "DNS_FAILED",
        message: format!("the name {host} cannot be looked up: {text}"),
        remedy: Remedy::text(
            "See whether this machine has name servers (/etc/resolv.conf) and reaches them.",
        )
        .command(format!("getent ahosts {host}")),
    }
}

/// Connects to the first of `addresses` that answers, and writes down each try.
///
/// # Errors
/// What the last one did.
pub async fn connect(
    addresses: &[SocketAddr],
    limit: Duration,
    steps: &mut Vec<String>,
) -> Result<TcpStream, Problem> {
    connect_from(None, addresses, limit, steps).await
}

/// The same from `source`, where an address is on loopback.
///
/// # Errors
/// What the last one did.
pub async fn connect_from(
    source: Option<Ipv4Addr>,
    addresses: &[SocketAddr],
    limit: Duration,
    steps: &mut Vec<String>,
) -> Result<TcpStream, Problem> {
    let each = limit / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    let mut last = None;
    for address in addresses {
        let begun = Instant::now();
        let error = match timeout(each, open(source, *address)).await {
            Ok(Ok(stream)) => {
                let from = match stream.local_addr() {
                    Ok(local) => format!(" from {}", local.ip()),
                    Err(_) => String::new(),
                };
                steps.push(format!(
                    "tcp: connected to {address}{from} ({})",
                    took(begun)
                ));
                return Ok(stream);
            }
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        let problem = tcp_problem(*address, &error);
        steps.push(format!("tcp: {} ({})", problem.message, took(begun)));
        last = Some(problem);
    }
    Err(last.unwrap_or_else(|| Problem {
        code: "TCP_FAILED",
        message: "there is no address to connect to".to_owned(),
        remedy: Remedy::default(),
    }))
}

async fn open(source: Option<Ipv4Addr>, address: SocketAddr) -> io::Result<TcpStream> {
    match (source, address) {
        (Some(source), SocketAddr::V4(to)) if to.ip().is_loopback() => {
            let socket = TcpSocket::new_v4()?;
            socket.bind((source, 0).into())?;
            socket.connect(address).await
        }
        _ => TcpStream::connect(address).await,
    }
}

fn tcp_problem(address: SocketAddr, error: &io::Error) -> Problem {
    let (ip, port) = (address.ip(), address.port());
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Problem {
            code: "TCP_REFUSED",
            message: format!("{address} refused the connection"),
            remedy: Remedy::text(format!(
                "Nothing listens on port {port} of {ip}, or a firewall rejects it: start the \
                 service there, or allow the connection."
            ))
            .command(format!("nc -vz {ip} {port}")),
        },
        io::ErrorKind::TimedOut => Problem {
            code: "TCP_TIMED_OUT",
            message: format!("outbound TCP {port} to {ip} times out: a firewall drops it"),
            remedy: Remedy::text(format!(
                "Allow outbound TCP to {ip} port {port} in this machine's and the network's \
                 firewalls."
            ))
            .command("nft list ruleset"),
        },
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Problem {
            code: "TCP_UNREACHABLE",
            message: format!("there is no way to {ip}: {error}"),
            remedy: Remedy::text("See whether the network is up and has a route there.")
                .command(format!("ip route get {ip}")),
        },
        _ => Problem {
            code: "TCP_FAILED",
            message: format!("cannot connect to {address}: {error}"),
            remedy: Remedy::text(format!(
                "See whether {ip} port {port} may be reached from here."
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_refused_connection_says_so_and_an_accepted_one_names_both_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut steps = Vec::new();
        connect(&[address], LIMIT, &mut steps).await.unwrap();
        assert!(steps[0].contains("from 127.0.0.1"), "{steps:?}");
        drop(listener);
        let problem = connect(&[address], LIMIT, &mut steps).await.unwrap_err();
        assert_eq!(problem.code, "TCP_REFUSED");
        assert_eq!(steps.len(), 2);
    }

    #[test]
    fn each_way_a_name_is_lost_has_its_cause() {
        let server = |last: u8| IpAddr::from([192, 0, 2, last]);
        let here = || Said::Addresses([server(9)].into());
        let table = [
            (vec![Said::NoSuchName, Said::Silent], "DNS_NXDOMAIN"),
            (vec![here(), Said::NoSuchName], "DNS_SPLIT"),
            (vec![Said::Silent, Said::Silent], "DNS_TIMED_OUT"),
            (
                vec![Said::Silent, Said::Failed(String::new())],
                "DNS_FAILED",
            ),
            (vec![Said::NoAddress], "DNS_NO_ADDRESS"),
        ];
        for (said, code) in table {
            let answers: Vec<_> = (1..)
                .zip(said)
                .map(|(last, said)| Answer {
                    server: server(last),
                    said,
                    step: String::new(),
                })
                .collect();
            let problem = name_problem("x.example", &answers).unwrap();
            assert_eq!(problem.code, code, "{answers:?}");
            assert_eq!(problem.remedy.commands.len(), 1);
        }
        assert_eq!(name_problem("x.example", &[]), None);
    }

    #[tokio::test]
    async fn addresses_need_no_name_server() {
        let mut steps = Vec::new();
        let found = resolve("[::1]", 80, LIMIT, &mut steps).await.unwrap();
        assert_eq!(found, ["[::1]:80".parse().unwrap()]);
        assert!(steps.is_empty());
    }

    #[tokio::test]
    async fn a_name_that_cannot_exist_is_a_problem_of_names() {
        let mut steps = Vec::new();
        let problem = resolve("nowhere.invalid", 80, LIMIT, &mut steps)
            .await
            .unwrap_err();
        assert!(problem.code.starts_with("DNS_"), "{problem:?}");
        assert!(steps[0].starts_with("name: "), "{steps:?}");
    }
}
