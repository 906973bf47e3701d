//! Sessions that say the wrong thing or with the wrong certificate: each refused with its code and
//! reason, while another host of the same broker goes on.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use muster_broker::ca::{Ca, Subject};
use muster_core::model::HostName;
use muster_proto::v1::{
    Beat, CheckHostRequest, CheckOutcome, HostStatus, ListFleetHostsRequest, RemoveHostRequest,
    Report, agent_message::Body, connection_service_client::ConnectionServiceClient,
    fleet_service_client::FleetServiceClient,
};
use muster_runtime::identity::{Identity, csr_for_key, from_certificate};
use muster_tests::{
    broker::Broker,
    clients::{self, Credentials},
    fleet::{Fleet, LightAgent},
    session::{Session, plain_hello, plain_report, result},
};
use tonic::{Code, Status};

use crate::support::{assert_goes_on, assert_refused, has_reason};

/// A broker with a host that must not notice anything, and another that may misbehave.
struct Scene {
    broker: Broker,
    bystander: Fleet,
    culprit: Credentials,
}

impl Scene {
    async fn new() -> Result<Self> {
        let broker = Broker::start().await?;
        let bystander = Fleet::start(&broker, "default", "bystander", 1).await?;
        let token = broker.token("default", None, 1).await?;
        let culprit = broker.way_in().enrol(&token, "culprit").await?;
        Ok(Self {
            broker,
            bystander,
            culprit,
        })
    }

    /// The bystander kept its one session, and the broker takes new hosts.
    async fn nobody_else_noticed(self) -> Result<()> {
        let state = self.bystander.agents[0].state();
        ensure!(state.sessions == 1 && state.reported, "{state:?}");
        let verdict = self.broker.verdict("bystander-0").await?;
        ensure!(verdict.status() == HostStatus::Available);
        assert_goes_on(&self.broker).await
    }

    /// A session of the culprit after a proper Hello.
    async fn session(&self) -> Result<Session> {
        let hello = plain_hello("boot");
        Ok(Session::hello(self.culprit.connect().await?, hello)
            .await?
            .0)
    }

    /// Opens a session with these credentials and gives the refusal.
    async fn refusal(&self, credentials: &Credentials) -> Result<Status> {
        let channel = credentials.connect().await?;
        match Session::hello(channel, plain_hello("boot")).await {
            Ok(_) => anyhow::bail!("not refused"),
            Err(status) => Ok(status),
        }
    }
}

#[tokio::test]
async fn a_beat_before_hello_is_refused() -> Result<()> {
    let scene = Scene::new().await?;
    let channel = scene.culprit.connect().await?;
    let status = match Session::open(channel, Body::Beat(Beat::default())).await {
        Ok(mut session) => session.refused().await?,
        Err(status) => status,
    };
    assert_refused(&status, Code::FailedPrecondition, "HELLO_EXPECTED")?;
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn a_second_hello_is_refused() -> Result<()> {
    let scene = Scene::new().await?;
    let mut session = scene.session().await?;
    session.say(Body::Hello(plain_hello("boot"))).await?;
    let status = session.refused().await?;
    assert_refused(&status, Code::FailedPrecondition, "HELLO_REPEATED")?;
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn a_message_over_its_limit_is_refused() -> Result<()> {
    let scene = Scene::new().await?;
    for bytes in [300 * 1024, 10 * 1024 * 1024] {
        let mut session = scene.session().await?;
        let mut report = plain_report(&[]);
        report.checks[0].message = "x".repeat(bytes);
        session.say(Body::Report(report)).await?;
        let status = session.refused().await?;
        assert_refused(&status, Code::ResourceExhausted, "MESSAGE_TOO_LARGE")?;
    }
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn a_report_that_breaks_the_contract_is_refused() -> Result<()> {
    let scene = Scene::new().await?;
    let with = |change: fn(&mut Report)| {
        let mut report = plain_report(&[]);
        change(&mut report);
        report
    };
    let broken = [
        with(|report| report.checks[0].name = "No Name".to_owned()),
        with(|report| report.checks[0].name = "n".repeat(65)),
        with(|report| report.checks[0].name = report.checks[1].name.clone()),
        with(|report| {
            let more = (0..65).map(|n| result(&format!("check-{n}"), CheckOutcome::Pass));
            report.checks = more.collect();
        }),
        with(|report| report.listeners = vec![report.listeners[0].clone(); 33]),
        with(|report| report.listeners[0].port = 70_000),
    ];
    for (number, report) in broken.into_iter().enumerate() {
        let mut session = scene.session().await?;
        session.say(Body::Report(report)).await?;
        let status = session.refused().await?;
        assert_refused(&status, Code::InvalidArgument, "MESSAGE_INVALID")
            .with_context(|| format!("report {number}"))?;
    }
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn a_check_that_the_broker_does_not_know_is_kept_and_not_fatal() -> Result<()> {
    let scene = Scene::new().await?;
    let mut session = scene.session().await?;
    let report = plain_report(&[("gpu-temperature", CheckOutcome::Fail)]);
    session.report(report).await?;
    let verdict = scene.broker.verdict("culprit").await?;
    ensure!(verdict.status() == HostStatus::NeedsAssistance && verdict.connectable_new);
    ensure!(has_reason(&verdict, "CHECK_FAILED"));
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn an_outcome_of_a_newer_agent_is_never_read_as_healthy() -> Result<()> {
    let scene = Scene::new().await?;
    let mut session = scene.session().await?;
    let mut report = plain_report(&[]);
    for check in &mut report.checks {
        check.outcome = 99;
        check.raw_outcome = 99;
    }
    session.report(report).await?;
    let verdict = scene.broker.verdict("culprit").await?;
    ensure!(verdict.status() == HostStatus::Unavailable && !verdict.connectable_new);
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn a_long_check_message_is_cut_and_marked() -> Result<()> {
    let scene = Scene::new().await?;
    let mut session = scene.session().await?;
    let mut report = plain_report(&[("urls", CheckOutcome::Fail)]);
    for check in &mut report.checks {
        check.message = "y".repeat(20_000);
    }
    session.report(report).await?;
    let request = muster_proto::v1::GetHostRequest {
        name: "culprit".to_owned(),
    };
    let host = scene.broker.operator().await?.get_host(request).await?;
    let host = host.into_inner().host.context("no host")?;
    for check in host.checks {
        let result = check.result.context("no result")?;
        ensure!(
            result.message.len() <= 256 && result.truncated,
            "{}",
            result.message.len()
        );
    }
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn no_certificate_no_word() -> Result<()> {
    let scene = Scene::new().await?;
    let token = scene.broker.token("default", None, 1).await?;
    let anonymous = scene.broker.way_in().anonymous(&token.ca_pin).await?;
    let status = match Session::hello(anonymous.clone(), plain_hello("boot")).await {
        Ok(_) => anyhow::bail!("not refused"),
        Err(status) => status,
    };
    assert_refused(&status, Code::Unauthenticated, "CERTIFICATE_REQUIRED")?;
    let request = CheckHostRequest::default();
    let status = ConnectionServiceClient::new(anonymous.clone())
        .check_host(request)
        .await;
    let status = status.unwrap_err();
    assert_refused(&status, Code::Unauthenticated, "CERTIFICATE_REQUIRED")?;
    let request = ListFleetHostsRequest::default();
    let status = FleetServiceClient::new(anonymous)
        .list_fleet_hosts(request)
        .await;
    let status = status.unwrap_err();
    assert_refused(&status, Code::Unauthenticated, "CERTIFICATE_REQUIRED")?;
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn each_role_reaches_its_own_services_only() -> Result<()> {
    let scene = Scene::new().await?;
    for role in ["frontend", "viewer", "operator"] {
        let issued = clients::issue(&scene.broker, role, "somebody").await?;
        let status = scene.refusal(&issued).await?;
        assert_refused(&status, Code::PermissionDenied, "ROLE_NOT_ALLOWED")?;
        let channel = issued.connect().await?;
        let mut fleet = FleetServiceClient::new(channel.clone());
        let listed = fleet
            .list_fleet_hosts(ListFleetHostsRequest::default())
            .await;
        let remove = RemoveHostRequest {
            name: "culprit".to_owned(),
        };
        let allowed = match role {
            "frontend" => {
                assert_refused(
                    &listed.unwrap_err(),
                    Code::PermissionDenied,
                    "ROLE_NOT_ALLOWED",
                )?;
                false
            }
            role => {
                listed?;
                role == "operator"
            }
        };
        match fleet.remove_host(remove).await {
            Ok(_) => ensure!(allowed, "{role} removed a host"),
            Err(status) if !allowed => {
                assert_refused(&status, Code::PermissionDenied, "ROLE_NOT_ALLOWED")?;
            }
            Err(status) => return Err(status.into()),
        }
    }
    // A host asks nothing about others.
    let token = scene.broker.token("default", None, 1).await?;
    let host = scene.broker.way_in().enrol(&token, "curious").await?;
    let channel = host.connect().await?;
    let request = CheckHostRequest {
        name: "bystander-0".to_owned(),
        ..CheckHostRequest::default()
    };
    let status = ConnectionServiceClient::new(channel)
        .check_host(request)
        .await;
    assert_refused(
        &status.unwrap_err(),
        Code::PermissionDenied,
        "ROLE_NOT_ALLOWED",
    )?;
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn the_certificate_of_a_removed_host_is_of_no_use() -> Result<()> {
    let scene = Scene::new().await?;
    let agent = LightAgent::start(scene.culprit.clone());
    agent.reported().await?;
    let request = RemoveHostRequest {
        name: "culprit".to_owned(),
    };
    scene.broker.operator().await?.remove_host(request).await?;
    // The open session is cut at once, and every later one refused.
    agent
        .until("the refusal", |state| {
            state.refused.is_some() && !state.reported
        })
        .await?;
    let status = scene.refusal(&scene.culprit).await?;
    assert_refused(&status, Code::NotFound, "HOST_UNKNOWN")?;

    // The name enrols anew; the old certificate still is of no use.
    let token = scene.broker.token("default", None, 1).await?;
    scene.broker.way_in().enrol(&token, "culprit").await?;
    let status = scene.refusal(&scene.culprit).await?;
    assert_refused(&status, Code::PermissionDenied, "HOST_SUPERSEDED")?;
    agent.kill().await;
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn a_host_speaks_only_for_the_name_in_its_certificate() -> Result<()> {
    // No message carries a host's name: a session with the culprit's certificate is the culprit's.
    let scene = Scene::new().await?;
    let mut session = scene.session().await?;
    session
        .report(plain_report(&[("session_listener", CheckOutcome::Fail)]))
        .await?;
    let culprit = scene.broker.verdict("culprit").await?;
    ensure!(culprit.status() == HostStatus::Unavailable);
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn the_certificate_of_another_fleet_is_refused() -> Result<()> {
    let scene = Scene::new().await?;
    let other = Broker::start().await?;
    let token = other.token("default", None, 1).await?;
    let stranger = other.way_in().enrol(&token, "bystander-0").await?;
    // It must believe our broker to get as far as being refused.
    let stranger = stranger.turned_to(&scene.culprit)?;
    let status = scene.refusal(&stranger).await?;
    assert_refused(
        &status,
        Code::Unauthenticated,
        "CERTIFICATE_OTHER_TRUST_DOMAIN",
    )?;
    scene.nobody_else_noticed().await
}

/// A certificate for the culprit's key, signed by the fleet's own CA, for whatever is asked.
fn signed(scene: &Scene, begun: jiff::Timestamp, identity: Identity) -> Result<Credentials> {
    let ca = Ca::load(&scene.broker.folder().data(), &identity.trust_domain)?;
    let subject = Subject {
        lifetime: Duration::from_secs(3600),
        server_names: &[],
        identity,
    };
    let csr = csr_for_key(&subject.identity.name, &scene.culprit.key)?;
    let issued = ca.sign(&csr, &subject, begun)?;
    scene.culprit.showing(&issued.der)
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_whatever_it_says() -> Result<()> {
    let scene = Scene::new().await?;
    let identity = from_certificate(&scene.culprit.certificates[0])?.identity;
    let folder = tempfile::tempdir()?;
    let now = jiff::Timestamp::now();
    let ca = Ca::create(folder.path(), &identity.trust_domain, now)?;
    let subject = Subject {
        lifetime: Duration::from_secs(3600),
        server_names: &[],
        identity,
    };
    let csr = csr_for_key(&subject.identity.name, &scene.culprit.key)?;
    let forged = ca.sign(&csr, &subject, now)?;
    let status = scene.refusal(&scene.culprit.showing(&forged.der)?).await?;
    assert_refused(&status, Code::Unauthenticated, "CERTIFICATE_UNTRUSTED")?;
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn a_certificate_without_an_identity_is_refused() -> Result<()> {
    let scene = Scene::new().await?;
    let data = scene.broker.folder().data();
    let root = rcgen::KeyPair::from_pem(&fs::read_to_string(data.join("ca.key"))?)?;
    let issuer = rcgen::Issuer::from_ca_cert_pem(&fs::read_to_string(data.join("ca.pem"))?, root)?;
    let key = rcgen::KeyPair::from_pem(scene.culprit.key.as_str())?;
    let plain = rcgen::CertificateParams::new(["culprit.example.org".to_owned()])?;
    let plain = plain.signed_by(&key, &issuer)?;
    let status = scene.refusal(&scene.culprit.showing(plain.der())?).await?;
    assert_refused(&status, Code::Unauthenticated, "CERTIFICATE_MALFORMED")?;
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_name() -> Result<()> {
    let scene = Scene::new().await?;
    let identity = from_certificate(&scene.culprit.certificates[0])?.identity;
    let week_ago = jiff::Timestamp::now() - Duration::from_secs(7 * 86_400);
    let expired = signed(&scene, week_ago, identity)?;
    let status = scene.refusal(&expired).await?;
    assert_refused(&status, Code::Unauthenticated, "CERTIFICATE_EXPIRED")?;
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn the_certificate_of_no_known_host_is_refused() -> Result<()> {
    let scene = Scene::new().await?;
    let mut identity = from_certificate(&scene.culprit.certificates[0])?.identity;
    identity.name = HostName::new("nobody")?;
    let nobody = signed(&scene, jiff::Timestamp::now(), identity)?;
    let status = scene.refusal(&nobody).await?;
    assert_refused(&status, Code::NotFound, "HOST_UNKNOWN")?;
    scene.nobody_else_noticed().await
}

#[tokio::test]
async fn another_hosts_name_with_ones_own_id_is_refused() -> Result<()> {
    let scene = Scene::new().await?;
    let mut identity = from_certificate(&scene.culprit.certificates[0])?.identity;
    identity.name = HostName::new("bystander-0")?;
    let usurper = signed(&scene, jiff::Timestamp::now(), identity)?;
    let status = scene.refusal(&usurper).await?;
    assert_refused(&status, Code::PermissionDenied, "HOST_SUPERSEDED")?;
    scene.nobody_else_noticed().await
}
