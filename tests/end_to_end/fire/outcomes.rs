//! What front ends say that they met when they followed a verdict.

use anyhow::{Context, Result, ensure};
use muster_proto::v1::{ConnectOutcome, OutcomeCounted, ReportOutcomeRequest, Verdict};
use muster_tests::{
    broker::{Broker, describe},
    clients::{self, Connections, Token},
    wait,
};
use tonic::{Code, Status};

use super::{
    Block, Judge, PORT, calibrated, evidence, is_well, let_probe, lights, long_lease, state_until,
    status_text,
};
use crate::support::{assert_refused, has_reason};

/// A front end that follows verdicts.
struct FrontEnd(Connections);

impl FrontEnd {
    async fn new(broker: &Broker, role: &str, name: &str) -> Result<Self> {
        let issued = clients::issue(broker, role, name).await?;
        Ok(Self(Connections::new(issued.connect().await?)))
    }

    async fn report(
        &mut self,
        verdict_id: &str,
        name: &str,
        outcome: ConnectOutcome,
    ) -> Result<OutcomeCounted, Status> {
        let request = ReportOutcomeRequest {
            verdict_id: verdict_id.to_owned(),
            name: name.to_owned(),
            outcome: outcome.into(),
        };
        let answer = self.0.service().report_outcome(request).await?;
        Ok(answer.into_inner().counted())
    }

    /// Asks about a host and says what came of following the answer.
    async fn met(&mut self, name: &str, outcome: ConnectOutcome) -> Result<OutcomeCounted> {
        let verdict = self.0.check(name).await?;
        Ok(self.report(&verdict.verdict_id, name, outcome).await?)
    }

    /// As [`Self::met`], and it counts.
    async fn counts(&mut self, name: &str, outcome: ConnectOutcome) -> Result<()> {
        let counted = self.met(name, outcome).await?;
        ensure!(counted == OutcomeCounted::Yes, "{name}: {counted:?}");
        Ok(())
    }
}

fn seen_from_outside(verdict: &Verdict) -> bool {
    has_reason(verdict, "OUTSIDE_VIEW")
}

#[tokio::test]
async fn what_front_ends_meet_bars_a_host_only_if_the_broker_meets_it_too() -> Result<()> {
    let broker = Broker::start_with(long_lease()).await?;
    let_probe(&broker, "default", "\"127.0.0.0/8\"", &PORT.to_string()).await?;
    let mut agents = lights(&broker, "default", "host", &Block::new(), 8).await?;
    let mut first = FrontEnd::new(&broker, "frontend", "gateway-1").await?;
    let mut second = FrontEnd::new(&broker, "frontend", "gateway-2").await?;
    let mut third = FrontEnd::new(&broker, "frontend", "gateway-3").await?;
    let judge = Judge::start(&broker).await?;
    for name in ["host-5", "host-6", "host-7", "host-8"] {
        for front_end in [&mut first, &mut second, &mut third] {
            front_end.counts(name, ConnectOutcome::Ok).await?;
        }
    }
    calibrated(&broker, 8).await?;

    // The first host is well for the broker: what others meet is a reason, and no more.
    first.counts("host-1", ConnectOutcome::Refused).await?;
    let soon = first.met("host-1", ConnectOutcome::Timeout).await?;
    ensure!(soon == OutcomeCounted::TooSoon, "{soon:?}");
    let odd = second.met("host-1", ConnectOutcome::ProtocolError).await?;
    ensure!(odd == OutcomeCounted::NotThisKind, "{odd:?}");
    second.counts("host-1", ConnectOutcome::Timeout).await?;
    let two = broker.verdict("host-1").await?;
    ensure!(
        !seen_from_outside(&two),
        "two are not three: {}",
        describe(&two)
    );
    third.counts("host-1", ConnectOutcome::Refused).await?;
    judge.told("host-1", "seen", seen_from_outside).await?;
    let looked = |verdict: &Verdict| {
        evidence(verdict, "OUTSIDE_VIEW")
            .is_ok_and(|seen| seen.contains("the broker itself connected"))
    };
    let reason = broker.verdict_until("host-1", "looked at", looked).await?;
    let seen = evidence(&reason, "OUTSIDE_VIEW")?;
    ensure!(reason.connectable_new, "{}", describe(&reason));
    for word in ["gateway-1", "gateway-2", "gateway-3", "refused", "timeout"] {
        ensure!(seen.contains(word), "{word}: {seen}");
    }

    // The second host's listener is gone, although its agent is heard.
    agents[1].close_listener().await;
    for front_end in [&mut first, &mut second, &mut third] {
        front_end.counts("host-2", ConnectOutcome::Refused).await?;
    }
    let barred = judge
        .told("host-2", "barred", |verdict| !verdict.connectable_new)
        .await?;
    let seen = evidence(&barred, "OUTSIDE_VIEW")?;
    ensure!(
        barred.connectable_reconnect && seen.contains("refused the broker at"),
        "{}: {seen}",
        describe(&barred)
    );

    // One that connects clears it, whoever it is. Nobody follows a no: this answer is older.
    let well = |verdict: &Verdict| is_well(verdict) && !seen_from_outside(verdict);
    let verdict = first.0.check("host-2").await?;
    ensure!(verdict.connectable_reconnect, "{}", describe(&verdict));
    let cleared = first
        .report(&verdict.verdict_id, "host-2", ConnectOutcome::Ok)
        .await?;
    ensure!(cleared == OutcomeCounted::Yes, "{cleared:?}");
    broker.verdict_until("host-2", "cleared", well).await?;
    judge.verdict().await
}

#[tokio::test]
async fn a_front_end_that_fails_everywhere_is_not_believed() -> Result<()> {
    let broker = Broker::start_with(long_lease()).await?;
    let _agents = lights(&broker, "default", "host", &Block::new(), 3).await?;
    let mut broken = FrontEnd::new(&broker, "frontend", "gateway-1").await?;
    let judge = Judge::start(&broker).await?;
    broken.counts("host-1", ConnectOutcome::Timeout).await?;
    for name in ["host-2", "host-3"] {
        let counted = broken.met(name, ConnectOutcome::Timeout).await?;
        ensure!(counted == OutcomeCounted::Discounted, "{name}: {counted:?}");
    }
    let shown = state_until(&broker, "it to be named", |state| {
        state.discounted_front_ends == ["gateway-1"]
    });
    shown.await?;
    let text = status_text(&broker).await?;
    ensure!(text.contains("FRONT_END_DISCOUNTED: gateway-1"), "{text}");
    let log = broker.process.log()?;
    ensure!(
        log.contains("a front end reported what it met"),
        "not audited: {log}"
    );
    judge.verdict().await
}

#[tokio::test]
async fn only_front_ends_report_and_only_on_verdicts_that_they_were_given() -> Result<()> {
    let broker = Broker::start_with(long_lease()).await?;
    let agents = lights(&broker, "default", "host", &Block::new(), 2).await?;
    let mut front_end = FrontEnd::new(&broker, "frontend", "gateway-1").await?;
    let judge = Judge::start(&broker).await?;
    let given = front_end.0.check("host-1").await?.verdict_id;
    let refused = ConnectOutcome::Refused;
    for (verdict_id, name) in [("", "host-1"), ("v-1", "host-1"), (&given, "host-2")] {
        let Err(status) = front_end.report(verdict_id, name, refused).await else {
            anyhow::bail!("{verdict_id:?} about {name} was taken");
        };
        assert_refused(&status, Code::InvalidArgument, "OUTCOME_UNKNOWN")?;
    }
    // An answer that said no is none to follow.
    let token: Token = broker.token("default", Some("never"), 1).await?;
    broker.way_in().enrol(&token, "never").await?;
    let no = front_end.0.check("never").await?.verdict_id;
    let Err(status) = front_end.report(&no, "never", refused).await else {
        anyhow::bail!("a no was followed");
    };
    assert_refused(&status, Code::InvalidArgument, "OUTCOME_UNKNOWN")?;
    let Err(status) = front_end
        .report(&given, "host-1", ConnectOutcome::Unspecified)
        .await
    else {
        anyhow::bail!("nothing was reported");
    };
    assert_refused(&status, Code::InvalidArgument, "REQUEST_INVALID")?;

    let mut viewer = FrontEnd::new(&broker, "viewer", "grafana").await?;
    let host = agents
        .first()
        .context("no agent")?
        .credentials
        .connect()
        .await?;
    let mut host = FrontEnd(Connections::new(host));
    let operator = clients::unix(&broker.endpoints.operator_socket).await?;
    let mut operator = FrontEnd(Connections::new(operator));
    for (role, who) in [
        ("viewer", &mut viewer),
        ("host", &mut host),
        ("operator", &mut operator),
    ] {
        let Err(status) = who.report(&given, "host-1", refused).await else {
            anyhow::bail!("the {role} reported");
        };
        assert_refused(&status, Code::PermissionDenied, "ROLE_NOT_ALLOWED")?;
    }
    wait::within(
        "the report",
        wait::PATIENCE,
        front_end.counts("host-1", refused),
    )
    .await??;
    judge.verdict().await
}
