//! `metadata_service`: does the cloud's metadata service answer this machine?
//!
//! The provider is configured or told by the firmware; on other machines the check does not apply.
//! It is asked directly, never through a proxy: a proxy would answer for another machine. The
//! answer must be what only that service gives. Settings of the machine that would send other
//! programs' requests for it to a proxy are a warning.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{CloudInstance, Finding, Outcome, Remedy},
};
use reqwest::{Client, RequestBuilder, Response, Url};
use serde_json::Value;

use super::{Check, Inputs};
use crate::{
    platform::{
        machine::{self, Firmware},
        proxies::{self, Catching},
    },
    probe::{
        http,
        tcp::{self, Problem, took},
    },
};

/// Bytes of an answer that are read. Documents have a few KiB, more with users' own data.
const MAX_BODY: usize = 256 << 10;

/// A cloud and its metadata service.
struct Provider {
    name: &'static str,
    is_here: fn(&Firmware) -> bool,
    endpoint: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    /// AWS wants a token first, so that a proxy that is fooled gives nothing away.
    token_first: bool,
    /// Where the document has the instance's id, region and type; JSON pointers. An answer without
    /// the id is from something else.
    id: &'static str,
    region: &'static str,
    kind: &'static str,
}

const LINK_LOCAL: &str = "http://169.254.169.254";

const PROVIDERS: [Provider; 8] = [
    Provider {
        name: "azure",
        is_here: |firmware| firmware.chassis_asset_tag == "7783-7084-3265-9085-8269-3286-77",
        endpoint: LINK_LOCAL,
        path: "/metadata/instance?api-version=2021-02-01",
        headers: &[("Metadata", "true")],
        token_first: false,
        id: "/compute/vmId",
        region: "/compute/location",
        kind: "/compute/vmSize",
    },
    Provider {
        name: "aws",
        is_here: |firmware| {
            firmware.sys_vendor == "Amazon EC2" || firmware.bios_vendor == "Amazon EC2"
        },
        endpoint: LINK_LOCAL,
        path: "/latest/dynamic/instance-identity/document",
        headers: &[],
        token_first: true,
        id: "/instanceId",
        region: "/region",
        kind: "/instanceType",
    },
    Provider {
        name: "gcp",
        is_here: |firmware| firmware.product_name == "Google Compute Engine",
        endpoint: LINK_LOCAL,
        path: "/computeMetadata/v1/instance/?recursive=true",
        headers: &[("Metadata-Flavor", "Google")],
        token_first: false,
        id: "/id",
        region: "/zone",
        kind: "/machineType",
    },
    Provider {
        name: "openstack",
        is_here: |firmware| firmware.product_name.starts_with("OpenStack"),
        endpoint: LINK_LOCAL,
        path: "/openstack/latest/meta_data.json",
        headers: &[],
        token_first: false,
        id: "/uuid",
        region: "/availability_zone",
        kind: "",
    },
    Provider {
        name: "digitalocean",
        is_here: |firmware| firmware.sys_vendor == "DigitalOcean",
        endpoint: LINK_LOCAL,
        path: "/metadata/v1.json",
        headers: &[],
        token_first: false,
        id: "/droplet_id",
        region: "/region",
        kind: "",
    },
    Provider {
        name: "hetzner",
        is_here: |firmware| firmware.sys_vendor == "Hetzner",
        endpoint: LINK_LOCAL,
        path: "/hetzner/v1/metadata",
        headers: &[],
        token_first: false,
        id: "/instance-id",
        region: "/region",
        kind: "",
    },
    Provider {
        name: "alibaba",
        is_here: |firmware| firmware.sys_vendor == "Alibaba Cloud",
        endpoint: "http://100.100.100.200",
        path: "/latest/dynamic/instance-identity/document",
        headers: &[],
        token_first: false,
        id: "/instance-id",
        region: "/region-id",
        kind: "/instance-type",
    },
    Provider {
        name: "oracle",
        is_here: |firmware| firmware.chassis_asset_tag == "OracleCloud.com",
        endpoint: LINK_LOCAL,
        path: "/opc/v2/instance/",
        headers: &[("Authorization", "Bearer Oracle")],
        token_first: false,
        id: "/id",
        region: "/canonicalRegionName",
        kind: "/shape",
    },
];

/// Names of the providers that are known.
#[must_use]
pub fn provider_names() -> Vec<&'static str> {
    PROVIDERS.iter().map(|provider| provider.name).collect()
}

pub(super) fn make(inputs: Inputs<'_>) -> Arc<dyn Check> {
    let config = &inputs.config.check.metadata_service;
    let provider = match &config.provider {
        Some(name) => PROVIDERS.iter().find(|provider| provider.name == name),
        None => {
            let firmware = machine::firmware(Path::new("/"));
            PROVIDERS
                .iter()
                .find(|provider| (provider.is_here)(&firmware))
        }
    };
    Arc::new(MetadataService {
        provider,
        endpoint: config.endpoint.clone(),
        configured: config.provider.is_some(),
        budget: inputs.budget(),
        root: PathBuf::from("/"),
    })
}

struct MetadataService {
    provider: Option<&'static Provider>,
    endpoint: Option<String>,
    configured: bool,
    budget: Duration,
    /// Where proxy settings are looked for.
    root: PathBuf,
}

impl Check for MetadataService {
    fn run(&self) -> BoxFuture<'_, Observation> {
        async {
            match self.provider {
                Some(provider) => self.ask(provider).await,
                None => Observation::new(
                    Outcome::NotApplicable,
                    "this machine is in no cloud that is known to have a metadata service",
                ),
            }
        }
        .boxed()
    }
}

impl MetadataService {
    async fn ask(&self, provider: &Provider) -> Observation {
        let because = if self.configured {
            "configured"
        } else {
            "told by the firmware"
        };
        let mut steps = vec![format!("the provider is {} ({because})", provider.name)];
        let begun = Instant::now();
        let answer = tokio::time::timeout(self.budget, self.try_all(provider, &mut steps)).await;
        let answer = answer.unwrap_or_else(|_| Err(silent(self.budget)));
        let instance = match answer {
            Ok(instance) => instance,
            Err(problem) => return self.failing(provider, steps, problem),
        };
        let message = format!("the metadata service answers: {instance}");
        let caught = self.proxies(provider).await;
        let seen = if let Some(first) = caught.first() {
            warned(self.base(provider), &message, steps, first, caught.len())
        } else {
            let message = format!("{message} ({})", took(begun));
            Observation::new(Outcome::Pass, message.clone()).with(Finding {
                subject: self.base(provider).to_owned(),
                code: "METADATA_REACHED".to_owned(),
                message,
                steps,
                remedy: None,
            })
        };
        Observation {
            cloud: Some(instance),
            ..seen
        }
    }

    fn failing(&self, provider: &Provider, steps: Vec<String>, problem: Problem) -> Observation {
        let message = format!(
            "the metadata service of {}: {}",
            provider.name, problem.message
        );
        Observation::new(Outcome::Fail, message.clone()).with(Finding {
            subject: self.base(provider).to_owned(),
            code: problem.code.to_owned(),
            message,
            steps,
            remedy: Some(problem.remedy),
        })
    }

    async fn proxies(&self, provider: &Provider) -> Vec<Catching> {
        let Some((IpAddr::V4(address), _)) = self.address(provider) else {
            return Vec::new();
        };
        // A service on loopback is somebody's own arrangement.
        if address.is_loopback() {
            return Vec::new();
        }
        let root = self.root.clone();
        let look = move || {
            let environment: BTreeMap<_, _> = std::env::vars().collect();
            proxies::catching(Path::new(&root), &environment, address.into())
        };
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    async fn try_all(
        &self,
        provider: &Provider,
        steps: &mut Vec<String>,
    ) -> Result<CloudInstance, Problem> {
        if let Some((ip, port)) = self.address(provider) {
            let address = [SocketAddr::new(ip, port)];
            tcp::connect(&address, self.budget / 2, steps)
                .await
                .map_err(|problem| unreachable(problem, ip, port))?;
        }
        let client = http::builder(self.budget)
            .no_proxy()
            .build()
            .map_err(|error| http::no_client(&error))?;
        let mut request = client.get(format!("{}{}", self.base(provider), provider.path));
        for (name, value) in provider.headers {
            request = request.header(*name, *value);
        }
        if provider.token_first {
            let token = self.token(&client, provider, steps).await?;
            request = request.header("X-aws-ec2-metadata-token", token);
        }
        let path = provider.path.split('?').next().unwrap_or_default();
        let response = answered(request, path, steps).await?;
        let body = http::bounded_body(response, MAX_BODY).await;
        let body = body.unwrap_or_default();
        steps.push(format!("read {} bytes", body.len()));
        read(provider, &body).ok_or_else(|| Problem {
            code: "METADATA_OTHER",
            message: format!("something else answers at {}", self.base(provider)),
            remedy: Remedy::text(
                "A proxy, a container network or another cloud's service answers in its place: \
                 see which route is taken, and whether the configured provider is right.",
            )
            .command("ip route get 169.254.169.254"),
        })
    }

    async fn token(
        &self,
        client: &Client,
        provider: &Provider,
        steps: &mut Vec<String>,
    ) -> Result<String, Problem> {
        const PATH: &str = "/latest/api/token";
        /// Tokens of the service have 56 characters.
        const MAX_TOKEN: usize = 1024;
        let request = client
            .put(format!("{}{PATH}", self.base(provider)))
            .header("X-aws-ec2-metadata-token-ttl-seconds", "60");
        let response = answered(request, PATH, steps).await?;
        let body = http::bounded_body(response, MAX_TOKEN)
            .await
            .unwrap_or_default();
        Ok(String::from_utf8_lossy(&body).trim().to_owned())
    }

    fn base<'a>(&'a self, provider: &'a Provider) -> &'a str {
        self.endpoint
            .as_deref()
            .unwrap_or(provider.endpoint)
            .trim_end_matches('/')
    }

    /// Where it is, unless a name stands in the configuration.
    fn address(&self, provider: &Provider) -> Option<(IpAddr, u16)> {
        let url = Url::parse(self.base(provider)).ok()?;
        let ip = url.host_str()?.trim_matches(['[', ']']).parse().ok()?;
        Some((ip, url.port_or_known_default()?))
    }
}

/// Id, region and type out of the document, or None if it is not that service's.
fn read(provider: &Provider, body: &[u8]) -> Option<CloudInstance> {
    let document = serde_json::from_slice(body)
        .ok()
        .or_else(|| flat_yaml(body))?;
    let text = |pointer: &str| -> Option<String> {
        let text = match document.pointer(pointer)? {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
        };
        // Google names zones and types by their whole path.
        let last = text.rsplit('/').next().unwrap_or_default();
        (!last.is_empty()).then(|| last.to_owned())
    };
    let optional = |pointer: &str| {
        let given = (!pointer.is_empty()).then(|| text(pointer)).flatten();
        given.unwrap_or_default()
    };
    CloudInstance {
        provider: provider.name.into(),
        instance_id: text(provider.id)?,
        region: optional(provider.region),
        instance_type: optional(provider.kind),
    }
    .bounded()
}

/// `key: value` lines, as Hetzner answers.
fn flat_yaml(body: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(body).ok()?;
    let pairs = text.lines().filter_map(|line| line.split_once(": "));
    let found: serde_json::Map<_, _> = pairs
        .map(|(key, value)| (key.to_owned(), Value::from(value.trim())))
        .collect();
    (!found.is_empty()).then_some(Value::Object(found))
}

async fn answered(
    request: RequestBuilder,
    path: &str,
    steps: &mut Vec<String>,
) -> Result<Response, Problem> {
    let response = match http::send(request, path, steps).await {
        Ok(response) => response,
        Err(problem) if problem.code == "HTTP_TIMED_OUT" => {
            return Err(Problem {
                remedy: unblock(),
                ..silent(Duration::ZERO)
            });
        }
        Err(problem) => {
            return Err(Problem {
                code: "METADATA_BROKEN",
                remedy: unblock(),
                ..problem
            });
        }
    };
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    Err(Problem {
        code: "METADATA_STATUS",
        message: format!("answers {status}"),
        remedy: Remedy::text(
            "See whether the metadata service is switched on for this machine, whether the \
             configured provider is right, and whether a proxy stands between.",
        ),
    })
}

/// Why there is no connection.
fn unreachable(problem: Problem, ip: IpAddr, port: u16) -> Problem {
    let ours = |code, message, remedy| Problem {
        code,
        message,
        remedy,
    };
    match problem.code {
        "TCP_UNREACHABLE" => ours(
            "METADATA_NO_ROUTE",
            format!("there is no route to {ip}"),
            Remedy::text("Give this machine its route to the metadata address, as DHCP does.")
                .command(format!("ip route get {ip}"))
                .command(format!("ip route add {ip}/32 dev $(ip -o route show default | awk '{{print $5; exit}}')")),
        ),
        "TCP_TIMED_OUT" => ours(
            "METADATA_DROPPED",
            format!("outbound TCP {port} to {ip} times out: a firewall drops it"),
            Remedy::text(format!("Allow outbound TCP to {ip} port {port} in this machine's firewall."))
                .command("nft list ruleset")
                .command("iptables -S OUTPUT"),
        ),
        "TCP_REFUSED" => ours(
            "METADATA_CLOSED",
            format!("{ip} refuses connections on port {port}"),
            Remedy::text(
                "A local firewall rejects it, or this machine has that address itself: look at \
                 both, and whether the metadata service is switched on for this machine.",
            )
            .command(format!("ip -br addr | grep -F {ip}"))
            .command("nft list ruleset"),
        ),
        _ => ours("METADATA_BROKEN", problem.message, unblock()),
    }
}

fn silent(budget: Duration) -> Problem {
    let within = if budget.is_zero() {
        "in time".to_owned()
    } else {
        format!("within {budget:?}")
    };
    Problem {
        code: "METADATA_SILENT",
        message: format!("takes connections and gives no whole answer {within}"),
        remedy: unblock(),
    }
}

fn unblock() -> Remedy {
    Remedy::text(
        "Allow this machine to reach the metadata address directly: unblock it in firewalls and \
         exempt it from proxies (no_proxy=169.254.169.254).",
    )
}

/// It answers us; others are sent to a proxy.
fn warned(
    subject: &str,
    message: &str,
    mut steps: Vec<String>,
    first: &Catching,
    count: usize,
) -> Observation {
    steps.push(message.to_owned());
    let more = match count {
        1 => String::new(),
        _ => format!(", and {} more places do", count - 1),
    };
    let message = format!(
        "{message}; but {} sets {} without an exception for it{more}",
        first.place, first.setting
    );
    let remedy = Remedy::text(format!("Add to {}: {}", first.file, first.line))
        .command(format!("echo '{}' >> {}", first.line, first.file));
    Observation::new(Outcome::Warn, message.clone()).with(Finding {
        subject: subject.to_owned(),
        code: "METADATA_PROXY".to_owned(),
        message,
        steps,
        remedy: Some(remedy),
    })
}

#[cfg(test)]
#[path = "metadata_service_tests.rs"]
mod tests;
