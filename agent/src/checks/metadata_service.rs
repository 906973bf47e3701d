//! `metadata_service`: does the cloud's metadata service answer this machine?
//!
//! The provider is configured or told by the firmware; on other machines the check does not apply.
//! It is asked directly, never through a proxy: a proxy would answer for another machine.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, FutureExt as _};
use muster_core::{
    agent::Observation,
    model::{Finding, Outcome, Remedy},
};
use reqwest::{Client, RequestBuilder, Response};

use super::{Check, Inputs};
use crate::{
    platform::machine::{self, Firmware},
    probe::{
        http,
        tcp::{Problem, took},
    },
};

/// Bytes of an answer that are read: enough to see that it is one.
const MAX_BODY: usize = 64 << 10;

/// A cloud and its metadata service.
struct Provider {
    name: &'static str,
    is_here: fn(&Firmware) -> bool,
    endpoint: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    /// AWS wants a token first, so that a proxy that is fooled gives nothing away.
    token_first: bool,
}

const LINK_LOCAL: &str = "http://169.254.169.254";

const PROVIDERS: [Provider; 8] = [
    Provider {
        name: "azure",
        is_here: |firmware| firmware.chassis_asset_tag == "7783-7084-3265-9085-8269-3286-77",
        endpoint: LINK_LOCAL,
        path: "/metadata/instance/compute/vmId?api-version=2021-02-01&format=text",
        headers: &[("Metadata", "true")],
        token_first: false,
    },
    Provider {
        name: "aws",
        is_here: |firmware| {
            firmware.sys_vendor == "Amazon EC2" || firmware.bios_vendor == "Amazon EC2"
        },
        endpoint: LINK_LOCAL,
        path: "/latest/meta-data/instance-id",
        headers: &[],
        token_first: true,
    },
    Provider {
        name: "gcp",
        is_here: |firmware| firmware.product_name == "Google Compute Engine",
        endpoint: LINK_LOCAL,
        path: "/computeMetadata/v1/instance/id",
        headers: &[("Metadata-Flavor", "Google")],
        token_first: false,
    },
    Provider {
        name: "openstack",
        is_here: |firmware| firmware.product_name.starts_with("OpenStack"),
        endpoint: LINK_LOCAL,
        path: "/openstack/latest/meta_data.json",
        headers: &[],
        token_first: false,
    },
    Provider {
        name: "digitalocean",
        is_here: |firmware| firmware.sys_vendor == "DigitalOcean",
        endpoint: LINK_LOCAL,
        path: "/metadata/v1/id",
        headers: &[],
        token_first: false,
    },
    Provider {
        name: "hetzner",
        is_here: |firmware| firmware.sys_vendor == "Hetzner",
        endpoint: LINK_LOCAL,
        path: "/hetzner/v1/metadata/instance-id",
        headers: &[],
        token_first: false,
    },
    Provider {
        name: "alibaba",
        is_here: |firmware| firmware.sys_vendor == "Alibaba Cloud",
        endpoint: "http://100.100.100.200",
        path: "/latest/meta-data/instance-id",
        headers: &[],
        token_first: false,
    },
    Provider {
        name: "oracle",
        is_here: |firmware| firmware.chassis_asset_tag == "OracleCloud.com",
        endpoint: LINK_LOCAL,
        path: "/opc/v2/instance/id",
        headers: &[("Authorization", "Bearer Oracle")],
        token_first: false,
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
    })
}

struct MetadataService {
    provider: Option<&'static Provider>,
    endpoint: Option<String>,
    configured: bool,
    budget: Duration,
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
        let answer = answer.unwrap_or_else(|_| {
            Err(Problem {
                code: "METADATA_TIMED_OUT",
                message: format!("no whole answer within {:?}", self.budget),
                remedy: unblock(),
            })
        });
        let (outcome, code, message, remedy) = match answer {
            Ok(()) => (
                Outcome::Pass,
                "METADATA_REACHED",
                format!(
                    "the metadata service of {} answers ({})",
                    provider.name,
                    took(begun)
                ),
                None,
            ),
            Err(problem) => (
                Outcome::Fail,
                problem.code,
                format!(
                    "the metadata service of {}: {}",
                    provider.name, problem.message
                ),
                Some(problem.remedy),
            ),
        };
        Observation::new(outcome, message.clone()).with(Finding {
            subject: self.base(provider).to_owned(),
            code: code.to_owned(),
            message,
            steps,
            remedy,
        })
    }

    async fn try_all(&self, provider: &Provider, steps: &mut Vec<String>) -> Result<(), Problem> {
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
        let response = answered(request, provider.path, steps).await?;
        let body = http::bounded_body(response, MAX_BODY).await;
        match body {
            Ok(body) if !body.is_empty() => {
                steps.push(format!("read {} bytes", body.len()));
                Ok(())
            }
            _ => Err(Problem {
                code: "METADATA_EMPTY",
                message: "the answer is empty or broken".to_owned(),
                remedy: Remedy::text(
                    "Something else may answer at this address: look at proxies and routes.",
                ),
            }),
        }
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
}

async fn answered(
    request: RequestBuilder,
    path: &str,
    steps: &mut Vec<String>,
) -> Result<Response, Problem> {
    let response = match http::send(request, path, steps).await {
        Ok(response) => response,
        Err(problem) => {
            return Err(Problem {
                code: "METADATA_UNREACHABLE",
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
        code: "METADATA_REFUSED",
        message: format!("answers {status}"),
        remedy: Remedy::text(
            "See whether the metadata service is switched on for this machine, and whether a \
             proxy or container network stands between.",
        ),
    })
}

fn unblock() -> Remedy {
    Remedy::text(
        "Allow this machine to reach the metadata address directly: unblock it in firewalls and \
         exempt it from proxies (no_proxy=169.254.169.254).",
    )
}

#[cfg(test)]
#[path = "metadata_service_tests.rs"]
mod tests;
