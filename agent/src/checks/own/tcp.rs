//! `tcp`: something takes connections at an address.

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::agent::Observation;
use muster_runtime::channel::BrokerAddress;

use super::{Definition, Place, Wrong, definition, failed, pass};
use crate::probe::tcp::{self, Problem};

definition! {
    /// Keys of `kind = "tcp"`.
    Tcp {
        /// Where to connect, `host:port`.
        address: String,
    }
}

impl Definition for Tcp {
    const KIND: &'static str = "tcp";

    fn wrong(&self) -> Option<Wrong> {
        wrong_address(&self.address)
    }

    fn look<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Observation> {
        async {
            let mut steps = Vec::new();
            match connect(&self.address, place, &mut steps).await {
                Ok(_stream) => {
                    let message = format!("{} takes connections", self.address);
                    pass(&self.address, "TCP_CONNECTED", message, steps)
                }
                Err(problem) => failed(&self.address, problem, steps),
            }
        }
        .boxed()
    }
}

/// What is wrong with an address, if anything.
pub(super) fn wrong_address(address: &str) -> Option<Wrong> {
    split(address).is_none().then(|| {
        let allowed = "HOST:PORT or [IPv6]:PORT".to_owned();
        ("address", format!("{address:?}"), allowed)
    })
}

/// Host and port of an address.
pub(super) fn split(address: &str) -> Option<(&str, u16)> {
    address.parse::<BrokerAddress>().ok()?;
    let (host, port) = address.rsplit_once(':')?;
    Some((host, port.parse().ok()?))
}

/// Connects to `address` in a third of the budget for the name and a third for the connection.
pub(super) async fn connect(
    address: &str,
    place: &Place,
    steps: &mut Vec<String>,
) -> Result<tokio::net::TcpStream, Problem> {
    // The address was checked when it was read.
    let (host, port) = split(address).unwrap_or((address, 0));
    let addresses = tcp::resolve(host, port, place.budget / 3, steps).await?;
    tcp::connect(&addresses, place.budget / 3, steps).await
}

#[cfg(test)]
mod tests {
    use muster_core::model::Outcome;
    use tokio::net::TcpListener;

    use super::super::testing::{look, refused};

    #[tokio::test]
    async fn a_listener_passes_and_a_closed_port_fails_with_its_cause() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let text = format!(
            "kind = 'tcp'\naddress = '{}'",
            listener.local_addr().unwrap()
        );
        assert_eq!(look(&text).await.outcome, Outcome::Pass);
        drop(listener);
        let seen = look(&text).await;
        assert_eq!(seen.outcome, Outcome::Fail);
        assert_eq!(seen.findings[0].code, "TCP_REFUSED");
        assert!(seen.findings[0].remedy.is_some());
    }

    #[test]
    fn an_address_without_a_port_is_refused() {
        assert!(refused("kind = 'tcp'\naddress = 'ldap'").contains("HOST:PORT"));
    }
}
