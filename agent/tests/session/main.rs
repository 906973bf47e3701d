//! The agent against a broker's edge that misbehaves in every way that a broker may.

// Clippy takes a module for one of tests by this mark alone.
#[cfg(test)]
mod edge;
#[cfg(test)]
mod paths;

use std::{sync::Arc, time::Duration};

use edge::{Agent, Broker, Ca, PATIENCE, Session, welcome};
use muster_agent::{
    announce::{Announcement, Delivered},
    control::{self, Answer, Request},
    enroll::{self, EnrollError},
    store::DataDir,
};
use muster_core::model::{HostName, Leave};
use muster_proto::v1::{
    Ack, CheckOutcome, CheckPolicy, Directive, EnrollResponse, HostPolicy, PowerKind, Recheck,
    Reconnect, Report, Resync, UpgradeKind, Welcome, ack, agent_message::Body,
    broker_message::Body as Word, directive::Action,
};
use muster_runtime::refusal::{self, Refusal};
use parking_lot::Mutex;
use tokio::time::timeout;
use tonic::Status;

fn outcome(report: &Report, name: &str) -> Option<CheckOutcome> {
    report
        .checks
        .iter()
        .find(|check| check.name == name)
        .map(|check| check.outcome())
}

fn passes(report: &Report) -> bool {
    outcome(report, "session_listener") == Some(CheckOutcome::Pass)
}

fn directive(action: Action) -> Word {
    Word::Directive(Directive {
        id: "d".to_owned(),
        action: Some(action),
    })
}

async fn acknowledge_goodbye(session: &mut Session) -> PowerKind {
    let goodbye = async {
        loop {
            if let Body::Leaving(leaving) = session.next().await.expect("a goodbye") {
                return leaving;
            }
        }
    };
    let leaving = timeout(PATIENCE, goodbye).await.expect("a goodbye in time");
    let of = Some(ack::Of::LeavingId(leaving.id));
    session.say(Word::Ack(Ack { of })).await;
    leaving.power.expect("a goodbye says how").kind()
}

#[tokio::test]
async fn a_session_begins_with_hello_and_a_full_report_and_beats_follow() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let mut agent = Agent::enrolled(&ca, &[broker.address]).await.start();
    let mut session = broker.session().await;
    let hello = session.open(welcome()).await;
    assert!(hello.resume_token.is_empty() && !hello.boot_id.is_empty());
    assert_eq!(hello.power.unwrap().kind(), PowerKind::Running);
    let Some(Body::Report(first)) = session.next().await else {
        panic!("the first word after Welcome is the report");
    };
    assert_eq!(first.checks.len(), muster_agent::checks::names().len());
    assert_eq!(first.sequence, 1);
    let report = session.report_until(passes).await;
    assert_eq!(report.listeners.len(), 1);
    let (one, two) = (session.beat().await, session.beat().await);
    assert!(two.sequence > one.sequence);
    assert!(one.results_valid_ms > 0);
    agent.link_until(|link| link.connected.is_some()).await;
    let (stopped, power) = tokio::join!(agent.stop(), acknowledge_goodbye(&mut session));
    stopped.unwrap();
    assert_eq!(power, PowerKind::AgentStop);
}

#[tokio::test]
async fn a_lost_session_comes_back_with_the_resume_token() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let _agent = Agent::enrolled(&ca, &[broker.address]).await.start();
    let mut session = broker.session().await;
    let first = session.open(welcome()).await;
    session.report_until(|_| true).await;
    drop(session);
    let mut session = broker.session().await;
    let second = session.open(welcome()).await;
    assert_eq!(second.resume_token, vec![7; 16]);
    assert_eq!(second.instance_id, first.instance_id);
    session.report_until(passes).await;
}

#[tokio::test]
async fn every_session_has_a_report_of_runs_that_began_in_it() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let _agent = Agent::enrolled(&ca, &[broker.address]).await.start();
    for _ in 0..2 {
        let mut session = broker.session().await;
        session.open(welcome()).await;
        let begun = std::time::Instant::now();
        session
            .report_until(|report| {
                let since = begun.elapsed().as_millis();
                report.checks.iter().all(|check| {
                    check
                        .age_ms
                        .is_some_and(|age| u128::from(age + check.duration_ms) <= since)
                })
            })
            .await;
    }
}

#[tokio::test]
async fn a_refusal_reaches_whoever_asks_and_ends_when_it_is_mended() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let agent = Agent::enrolled(&ca, &[broker.address]).await.start();
    let mut session = broker.session().await;
    session.hello().await;
    let refusal = Refusal::new(refusal::HOST_BANNED, "an operator banned vdi-01")
        .retry_after(Duration::from_millis(10));
    session.refuse(refusal.into()).await;
    let link = agent.link_until(|link| !link.problems.is_empty()).await;
    let problem = &link.problems[&broker.address.to_string()];
    assert!(
        problem.contains("HOST_BANNED") && problem.contains("an operator"),
        "{problem}"
    );
    let mut session = broker.session().await;
    session.open(welcome()).await;
    let link = agent.link_until(|link| link.connected.is_some()).await;
    assert!(link.problems.is_empty());
}

#[tokio::test]
async fn announcements_are_answered_when_acknowledged_and_restated_after_a_restart() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let mut agent = Agent::enrolled(&ca, &[broker.address]).await.start();
    let mut session = broker.session().await;
    session.open(welcome()).await;
    session.report_until(passes).await;
    let announcement = Announcement::Upgrading {
        to: "9.9.9".to_owned(),
        within: None,
    };
    let socket = agent.control.clone();
    let asked =
        tokio::spawn(
            async move { control::ask(&socket, &Request::Announce { announcement }).await },
        );
    let attempt = loop {
        if let Some(Body::UpgradeProgress(progress)) = session.next().await {
            let upgrade = progress.upgrade.unwrap();
            assert_eq!(
                (upgrade.kind(), &*upgrade.to_version),
                (UpgradeKind::InProgress, "9.9.9")
            );
            let of = Some(ack::Of::UpgradeProgressId(progress.id));
            session.say(Word::Ack(Ack { of })).await;
            break upgrade.attempt_id;
        }
    };
    let delivered = Delivered::Acknowledged;
    assert_eq!(
        asked.await.unwrap().unwrap(),
        Answer::Announced { delivered }
    );
    let (stopped, _) = tokio::join!(agent.stop(), acknowledge_goodbye(&mut session));
    stopped.unwrap();
    let _agent = agent.start();
    let hello = broker.session().await.open(welcome()).await;
    assert_eq!(hello.upgrade.unwrap().attempt_id, attempt);
}

#[tokio::test]
async fn without_a_session_an_announcement_is_kept_and_that_is_said() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let agent = Agent::enrolled(&ca, &[broker.address]).await.start();
    let mut session = broker.session().await;
    session.hello().await;
    let kind = Leave::Poweroff;
    let announcement = Announcement::Shutdown {
        kind,
        back_within: None,
    };
    let answer = control::ask(&agent.control, &Request::Announce { announcement })
        .await
        .unwrap();
    assert_eq!(
        answer,
        Answer::Announced {
            delivered: Delivered::NoSession
        }
    );
    session.refuse(Status::unavailable("starting")).await;
    let hello = broker.session().await.hello().await;
    assert_eq!(hello.power.unwrap().kind(), PowerKind::Poweroff);
}

#[tokio::test]
async fn an_announced_shutdown_is_the_goodbye_of_the_process_too() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let mut agent = Agent::enrolled(&ca, &[broker.address]).await.start();
    let mut session = broker.session().await;
    session.open(welcome()).await;
    session.report_until(passes).await;
    let socket = agent.control.clone();
    let announcement = Announcement::Shutdown {
        kind: Leave::Reboot,
        back_within: None,
    };
    let asked =
        tokio::spawn(
            async move { control::ask(&socket, &Request::Announce { announcement }).await },
        );
    assert_eq!(acknowledge_goodbye(&mut session).await, PowerKind::Reboot);
    asked.await.unwrap().unwrap();
    let (stopped, power) = tokio::join!(agent.stop(), acknowledge_goodbye(&mut session));
    stopped.unwrap();
    assert_eq!(power, PowerKind::Reboot);
}

#[tokio::test]
async fn a_broker_that_does_not_acknowledge_the_goodbye_is_not_waited_for() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let mut agent = Agent::enrolled(&ca, &[broker.address]).await.start();
    let mut session = broker.session().await;
    session.open(welcome()).await;
    session.report_until(passes).await;
    let begun = std::time::Instant::now();
    agent.stop().await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn a_policy_is_applied_reported_and_kept_for_the_next_start() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let mut agent = Agent::enrolled(&ca, &[broker.address]).await.start();
    let mut session = broker.session().await;
    let check = |name: &str| CheckPolicy {
        name: name.to_owned(),
        fall: 1,
        ..CheckPolicy::default()
    };
    let policy = HostPolicy {
        revision: "p-7".to_owned(),
        checks: vec![check("gpu"), check("domain")],
        expected_domain: "example.org".to_owned(),
        ..HostPolicy::default()
    };
    session
        .open(Welcome {
            policy: Some(policy),
            ..welcome()
        })
        .await;
    let report = session
        .report_until(|report| {
            report.policy_revision == "p-7"
                && outcome(report, "domain") == Some(CheckOutcome::Fail)
                && outcome(report, "gpu") == Some(CheckOutcome::Unknown)
        })
        .await;
    assert_eq!(report.checks.len(), muster_agent::checks::names().len() + 1);
    let (stopped, _) = tokio::join!(agent.stop(), acknowledge_goodbye(&mut session));
    stopped.unwrap();
    let _agent = agent.start();
    let hello = broker.session().await.hello().await;
    assert_eq!(hello.policy_revision, "p-7");
}

#[tokio::test]
async fn directives_recheck_resync_and_send_away() {
    let ca = Ca::new();
    let (mut broker, mut other) = (Broker::start(&ca), Broker::start(&ca));
    let _agent = Agent::enrolled(&ca, &[broker.address]).await.start();
    let mut session = broker.session().await;
    session.open(welcome()).await;
    let report = session.report_until(passes).await;
    session
        .say(Word::Resync(Resync {
            reason: "lost".to_owned(),
        }))
        .await;
    session
        .report_until(|later| later.sequence > report.sequence)
        .await;
    let checks = vec!["urls".to_owned(), "no-such-check".to_owned()];
    session
        .say(directive(Action::Recheck(Recheck { checks })))
        .await;
    // A directive of a newer broker.
    session
        .say(Word::Directive(Directive {
            id: "new".to_owned(),
            action: None,
        }))
        .await;
    session.beat().await;
    let endpoints = vec![other.address.to_string()];
    session
        .say(directive(Action::Reconnect(Reconnect {
            within_ms: 10,
            endpoints,
        })))
        .await;
    other.session().await.open(welcome()).await;
}

#[tokio::test]
async fn a_broker_that_never_answers_delays_no_check() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let mut agent = Agent::enrolled(&ca, &[broker.address]).await.start();
    let _silent = broker.session().await;
    for _ in 0..3 {
        timeout(PATIENCE, agent.listener.accept())
            .await
            .expect("a check in time")
            .unwrap();
    }
    agent.stop().await.unwrap();
}

#[tokio::test]
async fn a_welcome_that_breaks_the_contract_is_not_obeyed() {
    let ca = Ca::new();
    let mut broker = Broker::start(&ca);
    let agent = Agent::enrolled(&ca, &[broker.address]).await.start();
    let mut session = broker.session().await;
    session
        .open(Welcome {
            interval_ms: 1,
            ..welcome()
        })
        .await;
    let link = agent.link_until(|link| !link.problems.is_empty()).await;
    let problem = link.problems.values().next().unwrap();
    assert!(problem.contains("beat every 1ms"), "{problem}");
}

#[tokio::test]
async fn a_broker_of_another_fleet_is_not_told_anything() {
    let (ca, other) = (Ca::new(), Ca::new());
    let broker = Broker::start(&other);
    let agent = Agent::enrolled(&ca, &[broker.address]).await.start();
    let link = agent.link_until(|link| !link.problems.is_empty()).await;
    let problem = link.problems.values().next().unwrap();
    assert!(problem.contains("not trusted"), "{problem}");
}

fn wish(ca: &Ca, broker: &Broker) -> enroll::Wish {
    enroll::Wish {
        brokers: vec![broker.address.to_string()],
        token: "token".to_owned(),
        ca_pin: ca.pin(),
        name: HostName::new("vdi-01").ok(),
        again: false,
    }
}

fn response(ca: &Ca, csr: &[u8]) -> EnrollResponse {
    EnrollResponse {
        certificate: ca.sign(csr).into(),
        ca_bundle: vec![ca.root().to_vec().into()],
        name: "vdi-01".to_owned(),
        host_id: String::new(),
        pool: "default".to_owned(),
        trust_domain: "muster-0a1b2c3d".to_owned(),
        not_after: None,
    }
}

#[tokio::test]
async fn enrolling_again_after_a_lost_reply_uses_the_same_key() {
    let ca = Arc::new(Ca::new());
    let keys = Arc::new(Mutex::new(Vec::new()));
    let (signer, seen) = (Arc::clone(&ca), Arc::clone(&keys));
    let broker = Broker::enrolling(&ca, move |request| {
        let response = response(&signer, &request.csr);
        let mut seen = seen.lock();
        let info = muster_runtime::identity::pin_of(&response.certificate).unwrap();
        seen.push((info, request.token.clone()));
        if seen.len() == 1 {
            Err(Status::unavailable("the reply is lost"))
        } else {
            Ok(response)
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::new(folder.path());
    let error = enroll::enroll(&data, wish(&ca, &broker)).await.unwrap_err();
    assert!(matches!(error, EnrollError::Refused(_)), "{error}");
    let enrolment = enroll::enroll(&data, wish(&ca, &broker)).await.unwrap();
    assert_eq!(enrolment.name.as_str(), "vdi-01");
    assert_eq!(enrolment.brokers, [broker.address.to_string()]);
    {
        let keys = keys.lock();
        assert_eq!(keys[0], keys[1]);
    }
    assert!(data.identity().load().is_ok());
    assert!(data.pending().load_key().unwrap().is_none());
    let error = enroll::enroll(&data, wish(&ca, &broker)).await.unwrap_err();
    assert!(matches!(error, EnrollError::Already { .. }), "{error}");
}

#[tokio::test]
async fn a_refused_token_is_told_by_reason_and_a_wrong_pin_before_the_token_is_sent() {
    let (ca, other) = (Ca::new(), Ca::new());
    let broker = Broker::enrolling(&ca, |_| {
        Err(Refusal::new(refusal::TOKEN_EXPIRED, "the join token ended an hour ago").into())
    });
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::new(folder.path());
    let error = enroll::enroll(&data, wish(&ca, &broker)).await.unwrap_err();
    assert!(error.to_string().contains("TOKEN_EXPIRED"), "{error}");
    let error = enroll::enroll(&data, wish(&other, &broker))
        .await
        .unwrap_err();
    assert!(matches!(error, EnrollError::Connect(_)), "{error}");
    assert!(error.to_string().contains("pin"), "{error}");
    assert!(!data.identity().exists());
}

#[tokio::test]
async fn an_answer_for_another_key_is_not_kept() {
    let ca = Arc::new(Ca::new());
    let signer = Arc::clone(&ca);
    let broker = Broker::enrolling(&ca, move |_| {
        let name = HostName::new("x").unwrap();
        let (_, csr) = muster_runtime::identity::new_key_and_csr(&name).unwrap();
        Ok(response(&signer, &csr))
    });
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::new(folder.path());
    enroll::enroll(&data, wish(&ca, &broker)).await.unwrap_err();
    assert!(
        data.pending().load_key().unwrap().is_some(),
        "it can be asked again"
    );
}
