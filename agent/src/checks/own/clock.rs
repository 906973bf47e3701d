//! `clock`: this machine's clock is right.
//!
//! With a `server` it is asked how late it is, by SNTP (RFC 4330). Without one, what keeps the
//! clock is asked: chrony by its own command, else whatever timedated knows of.

use std::{
    net::SocketAddr,
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{Outcome, Remedy},
};
use muster_runtime::config::HumanDuration;
use tokio::{net::UdpSocket, process::Command, time::timeout};

use super::{Definition, Place, Wrong, cannot_run, definition, pass, seen, tcp::split};
use crate::{
    platform::resources::clock_is_synchronized,
    probe::tcp::{Problem, resolve},
};

/// From the years of NTP, which begin in 1900, to those of Unix.
const NTP_TO_UNIX: f64 = 2_208_988_800.0;
/// A packet without extensions.
const PACKET: usize = 48;

definition! {
    /// Keys of `kind = "clock"`.
    Clock {
        /// Time server to compare with, `host:port`; unset to ask what keeps the clock.
        server: Option<String>,
        /// A larger difference fails.
        #[serde(default = "one_second")]
        max_offset: HumanDuration,
    }
}

fn one_second() -> HumanDuration {
    HumanDuration(Duration::from_secs(1))
}

impl Definition for Clock {
    const KIND: &'static str = "clock";

    fn wrong(&self) -> Option<Wrong> {
        let server = self
            .server
            .as_ref()
            .filter(|server| split(server).is_none())?;
        let allowed = "HOST:PORT, the port of time servers being 123".to_owned();
        Some(("server", format!("{server:?}"), allowed))
    }

    fn look<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Observation> {
        async {
            match &self.server {
                Some(server) => self.compare(server, place.budget).await,
                None => self.ask_keeper(place.budget).await,
            }
        }
        .boxed()
    }
}

impl Clock {
    async fn compare(&self, server: &str, budget: Duration) -> Observation {
        let mut steps = Vec::new();
        match ask_server(server, budget, &mut steps).await {
            Ok(offset) => self.judge(server, offset, steps),
            Err(problem) => super::failed(server, problem, steps),
        }
    }

    fn judge(&self, subject: &str, offset: f64, mut steps: Vec<String>) -> Observation {
        steps.push(format!("offset {offset:.6} s by {subject}"));
        let message = format!("the clock is {:.3} s {}", offset.abs(), direction(offset));
        if offset.abs() <= self.max_offset.0.as_secs_f64() {
            return pass(subject, "CLOCK_RIGHT", message, steps);
        }
        let message = format!("{message}, more than {}", self.max_offset);
        seen(
            Outcome::Fail,
            subject,
            "CLOCK_WRONG",
            message,
            steps,
            Some(
                Remedy::text("Let a time service keep the clock, and step it once.")
                    .command("chronyc makestep")
                    .command("timedatectl timesync-status"),
            ),
        )
    }

    async fn ask_keeper(&self, budget: Duration) -> Observation {
        let mut steps = Vec::new();
        match chrony(budget / 2).await {
            Ok(answer) => match tracking(&answer) {
                Some((offset, true)) => return self.judge("chrony", offset, steps),
                Some((_, false)) => {
                    steps.push("chronyc tracking: not synchronised".to_owned());
                    return not_synchronized("chrony", steps, "chronyc sources -v");
                }
                None => steps.push("chronyc tracking: not understood".to_owned()),
            },
            Err(why) => steps.push(format!("chronyc tracking: {why}")),
        }
        let answer = timeout(budget / 2, clock_is_synchronized()).await;
        match answer.ok().flatten() {
            Some(true) => {
                steps.push("timedated: synchronized".to_owned());
                let message = "a time service keeps the clock";
                pass("timedated", "CLOCK_SYNCHRONIZED", message, steps)
            }
            Some(false) => {
                steps.push("timedated: not synchronized".to_owned());
                not_synchronized("timedated", steps, "timedatectl status")
            }
            None => {
                steps.push("timedated: does not answer".to_owned());
                let mut seen = cannot_run(
                    "clock",
                    "CLOCK_NOT_ASKED",
                    "neither chrony nor timedated tells how good the clock is".to_owned(),
                    Remedy::text(
                        "Install a time service, or name a time server: server = \"...\".",
                    )
                    .command("apt-get install chrony"),
                );
                for finding in &mut seen.findings {
                    finding.steps.append(&mut steps);
                }
                seen
            }
        }
    }
}

fn direction(offset: f64) -> &'static str {
    if offset > 0.0 { "late" } else { "early" }
}

fn not_synchronized(subject: &str, steps: Vec<String>, command: &str) -> Observation {
    seen(
        Outcome::Fail,
        subject,
        "CLOCK_NOT_SYNCHRONIZED",
        "no time source keeps the clock",
        steps,
        Some(
            Remedy::text("See whether the time servers are reachable (UDP 123).").command(command),
        ),
    )
}

async fn chrony(limit: Duration) -> Result<String, String> {
    let run = Command::new("chronyc")
        .args(["-n", "-c", "tracking"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    match timeout(limit, run).await {
        Ok(Ok(output)) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

/// Offset of the clock, late being positive, and whether it is kept, of `chronyc -c tracking`.
fn tracking(line: &str) -> Option<(f64, bool)> {
    let fields: Vec<_> = line.trim().split(',').collect();
    let leap = fields.get(13)?;
    let offset: f64 = fields.get(4)?.parse().ok()?;
    Some((offset, *leap != "Not synchronised"))
}

async fn ask_server(
    server: &str,
    budget: Duration,
    steps: &mut Vec<String>,
) -> Result<f64, Problem> {
    // The address was checked when it was read.
    let (host, port) = split(server).unwrap_or((server, 0));
    let addresses = resolve(host, port, budget / 3, steps).await?;
    let Some(address) = addresses.first() else {
        return Err(silent(server, "there is no address"));
    };
    match timeout(budget / 2, exchange(*address)).await {
        Ok(Ok(answer)) => answer.map_err(|why| Problem {
            code: "CLOCK_SERVER_USELESS",
            message: format!("{server} is no good time server: {why}"),
            remedy: Remedy::text("Name another server, or see what that one follows."),
        }),
        Ok(Err(error)) => Err(silent(server, &error.to_string())),
        Err(_) => Err(silent(server, "no answer in time")),
    }
}

fn silent(server: &str, why: &str) -> Problem {
    Problem {
        code: "CLOCK_SERVER_SILENT",
        message: format!("{server} does not tell the time: {why}"),
        remedy: Remedy::text(
            "See whether a firewall drops UDP to that port, and whether it serves.",
        ),
    }
}

async fn exchange(address: SocketAddr) -> std::io::Result<Result<f64, &'static str>> {
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    // What the server sends back as our time: only who got our packet knows it.
    let cookie: [u8; 8] = rand::random();
    let mut request = [0; PACKET];
    // Version 4, client.
    request[0] = 0x23;
    request[40..].copy_from_slice(&cookie);
    let sent = now();
    socket.send(&request).await?;
    loop {
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).await?;
        if length >= PACKET && answer[24..32] == cookie {
            return Ok(offset(&answer[..PACKET], sent, now()));
        }
    }
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// How late this machine's clock is by an answer, or why the answer says nothing.
fn offset(answer: &[u8], sent: f64, arrived: f64) -> Result<f64, &'static str> {
    let (leap, mode, stratum) = (answer[0] >> 6, answer[0] & 7, answer[1]);
    if mode != 4 {
        return Err("it answers as something else than a server");
    }
    if leap == 3 || !(1..16).contains(&stratum) {
        return Err("it follows no time source itself");
    }
    let received = instant(&answer[32..40]);
    let answered = instant(&answer[40..48]);
    Ok(f64::midpoint(received - sent, answered - arrived))
}

/// Seconds of Unix of an NTP timestamp; those without the top bit are of the era from 2036 on.
fn instant(bytes: &[u8]) -> f64 {
    let part = |at: usize| {
        let four = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        u32::from_be_bytes(four)
    };
    let era = if part(0) & 0x8000_0000 == 0 {
        f64::from(u32::MAX) + 1.0
    } else {
        0.0
    };
    f64::from(part(0)) + era - NTP_TO_UNIX + f64::from(part(4)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{look, look_within, refused};
    use super::*;

    /// A time server of which the clock is `ahead` seconds ahead of this machine's.
    async fn server(ahead: f64, stratum: u8) -> String {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut request = [0; PACKET];
            while let Ok((_, from)) = socket.recv_from(&mut request).await {
                let mut answer = [0; PACKET];
                answer[0] = 0x24;
                answer[1] = stratum;
                answer[24..32].copy_from_slice(&request[40..48]);
                let time = now() + ahead + NTP_TO_UNIX;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a time"
                )]
                let seconds = time as u32;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a part"
                )]
                let part = (time.fract() * f64::from(u32::MAX)) as u32;
                for at in [32, 40] {
                    answer[at..at + 4].copy_from_slice(&seconds.to_be_bytes());
                    answer[at + 4..at + 8].copy_from_slice(&part.to_be_bytes());
                }
                let _ = socket.send_to(&answer, from).await;
            }
        });
        format!("kind = 'clock'\nserver = '{address}'")
    }

    #[tokio::test]
    async fn a_clock_is_compared_with_a_server() {
        let table = [
            (server(0.0, 2).await, Outcome::Pass, "CLOCK_RIGHT"),
            (server(90.0, 2).await, Outcome::Fail, "CLOCK_WRONG"),
            (server(-90.0, 2).await, Outcome::Fail, "CLOCK_WRONG"),
            (server(0.0, 16).await, Outcome::Fail, "CLOCK_SERVER_USELESS"),
        ];
        for (keys, outcome, code) in table {
            let seen = look(&keys).await;
            assert_eq!(
                (seen.outcome, &*seen.findings[0].code),
                (outcome, code),
                "{seen:?}"
            );
        }
        let late = look(&server(90.0, 2).await).await;
        assert!(
            late.message.contains("90.0") && late.message.contains("late"),
            "{late:?}"
        );
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_silent() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let keys = format!(
            "kind = 'clock'\nserver = '{}'",
            socket.local_addr().unwrap()
        );
        let seen = look_within(&keys, Duration::from_millis(200)).await;
        assert_eq!(seen.findings[0].code, "CLOCK_SERVER_SILENT");
    }

    #[test]
    fn chronys_words_are_understood() {
        let kept = "C0A80001,192.168.0.1,3,1700000000.1,0.000012,0.0,0.0,1.0,0.0,0.1,0.01,0.001,64.2,Normal";
        assert_eq!(tracking(kept), Some((0.000_012, true)));
        let lost = kept.replace("Normal", "Not synchronised");
        assert_eq!(tracking(&lost), Some((0.000_012, false)));
        assert_eq!(tracking("506 Cannot talk to daemon"), None);
    }

    #[test]
    fn times_after_2036_are_not_those_of_1900() {
        assert!(instant(&[0; 8]) > 2_085_900_000.0);
        assert!((instant(&[0xec, 0, 0, 0, 0, 0, 0, 0]) - 1_750_323_456.0).abs() < 1e7);
    }

    #[test]
    fn keys_are_checked() {
        assert!(refused("kind = 'clock'\nserver = 'a b'").contains("123"));
    }
}
