//! The border, both ways and with everything that may be wrong.

use std::time::Duration;

use jiff::Timestamp;
use muster_core::{
    agent::{CheckPolicy, HostPolicy},
    host::{Beat, CheckStanding, Drain, Flip, Hello, Report},
    model::{
        CheckName, CheckResult, CloudInstance, Confidence, Finding, HostId, HostName, Intent,
        Leave, Listener, MAX_FINDINGS_BYTES, MAX_MESSAGE_BYTES, Outcome, PoolName, PoolPolicy,
        PowerAnnouncement, Reason, ReasonCode, Remedy, RequiredUrl, SafeToPowerOff, SessionCounts,
        Severity, Status, Transition, UnknownCause, UpgradeAnnouncement, UpgradeAttempt,
        UpgradePhase, Verdict, default_check_names,
    },
};
use proptest::{collection::vec, prelude::*, test_runner::TestCaseError};
use prost::Message as _;

use super::*;
use crate::v1;

/// A number that no enum of this version has.
const NEWER: i32 = 99;

const OUTCOMES: [Outcome; 9] = [
    Outcome::Pass,
    Outcome::Warn,
    Outcome::Fail,
    Outcome::NotApplicable,
    Outcome::Unknown(UnknownCause::NotYetRun),
    Outcome::Unknown(UnknownCause::TimedOut),
    Outcome::Unknown(UnknownCause::Stale),
    Outcome::Unknown(UnknownCause::CannotRun),
    Outcome::Unknown(UnknownCause::Unsupported),
];

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn check(name: &str, outcome: Outcome, raw: Outcome) -> CheckResult {
    CheckResult {
        name: CheckName::new(name).unwrap(),
        kind: "urls".into(),
        outcome,
        raw,
        age: Some(Duration::from_millis(1500)),
        duration: Duration::from_millis(20),
        message: "1 of 2 URLs not reachable".into(),
        findings: vec![Finding {
            subject: "https://example.org".into(),
            code: "DNS_NXDOMAIN".into(),
            message: "no such name".into(),
            steps: vec!["asked 127.0.0.53".into()],
            remedy: Some(Remedy::text("create the record").command("nsupdate")),
        }],
        truncated: true,
    }
}

fn attempt(phase: UpgradePhase) -> UpgradeAttempt {
    UpgradeAttempt {
        id: "a-1".into(),
        from: "1.0.0".into(),
        to: "1.1.0".into(),
        phase,
    }
}

fn hello() -> Hello {
    Hello {
        agent_version: "1.0.0".into(),
        boot_id: "b".into(),
        resume_token: Some(muster_core::model::ResumeToken::new([9; 16])),
        instance_id: "i".into(),
        os: "Debian GNU/Linux 12 (bookworm)".into(),
        addresses: vec!["192.0.2.1".into(), "2001:db8::1".into()],
        policy_revision: "default-1".into(),
        power: PowerAnnouncement::Running,
        upgrade: UpgradeAnnouncement::Silent,
    }
}

fn report() -> Report {
    Report {
        sequence: 7,
        state_hash: u64::MAX,
        results_valid: Duration::from_secs(100),
        checks: OUTCOMES
            .into_iter()
            .enumerate()
            .map(|(at, outcome)| check(&format!("check_{at}"), outcome, OUTCOMES[8 - at]))
            .collect(),
        listeners: vec![Listener {
            protocol: "ssh".into(),
            addresses: vec!["0.0.0.0".into()],
            port: 65535,
        }],
        cloud: Some(CloudInstance {
            provider: "aws".into(),
            instance_id: "i-0123456789abcdef0".into(),
            region: "eu-west-1".into(),
            instance_type: String::new(),
        }),
        sessions: SessionCounts {
            active: Some(0),
            disconnected: None,
            pending: Some(2),
        },
        policy_revision: "".into(),
        power: PowerAnnouncement::Leaving {
            how: Leave::Reboot,
            back_within: Some(Duration::from_secs(300)),
        },
        upgrade: UpgradeAnnouncement::Failed {
            attempt: attempt(UpgradePhase::Switch),
            error: "no space left".into(),
        },
    }
}

fn reason() -> Reason {
    Reason {
        subject: "urls".into(),
        evidence: vec!["asked 127.0.0.53".into()],
        ..Reason::new(ReasonCode::CHECK_FAILED, "urls fails", at(50))
    }
}

fn verdict() -> Verdict {
    Verdict {
        name: HostName::new("vdi-01").unwrap(),
        host_id: HostId::from_random([7; 16]),
        pool: PoolName::default_pool(),
        status: Status::NeedsAssistance,
        status_since: at(50),
        intent: Intent::Reconnect,
        connectable: true,
        connectable_new: false,
        connectable_reconnect: true,
        reasons: vec![
            reason(),
            Reason::new(ReasonCode::from_text("NEWER_CODE"), "x", at(1)),
        ],
        as_of: Timestamp::new(100, 123_456_789).unwrap(),
        last_beat_age: Some(Duration::from_millis(1)),
        confidence: Confidence::Suspect,
        confidence_reason: "STREAM_ENDED".into(),
        valid_for: Duration::from_secs(5),
        retry_after: Some(Duration::from_secs(1)),
        observed_by: "broker-1".into(),
        verdict_id: "v".into(),
        listeners: report().listeners,
        sessions: report().sessions,
        safe_to_power_off: SafeToPowerOff::Unknown,
    }
}

/// Over the wire and back.
fn round<T, W>(value: &T)
where
    T: Clone + PartialEq + std::fmt::Debug + TryFrom<W>,
    W: From<T> + prost::Message + Default,
    T::Error: std::fmt::Debug,
{
    let bytes = W::from(value.clone()).encode_to_vec();
    let back = W::decode(bytes.as_slice()).unwrap();
    assert_eq!(T::try_from(back).unwrap(), *value);
}

fn problem<T, W>(wire: W) -> String
where
    T: TryFrom<W, Error = BorderError> + std::fmt::Debug,
{
    T::try_from(wire).unwrap_err().to_string()
}

#[test]
fn messages_come_back_as_they_went() {
    round::<_, v1::Hello>(&hello());
    round::<_, v1::Report>(&report());
    for (from, to) in [
        (None, CheckStanding::Warn),
        (Some(CheckStanding::Pass), CheckStanding::Unknown),
        (Some(CheckStanding::Fail), CheckStanding::Pass),
    ] {
        let message = "urls fails".to_owned();
        round::<_, v1::CheckFlip>(&Flip {
            at: at(7),
            from,
            to,
            message,
        });
    }
    round::<_, v1::Beat>(&Beat {
        sequence: 3,
        state_hash: 5,
        results_valid: Duration::from_millis(1),
        sessions: report().sessions,
    });
    round::<_, v1::Reason>(&reason());
    round::<_, v1::Verdict>(&verdict());
    for from in [None, Some(Status::Available)] {
        round::<_, v1::Transition>(&Transition {
            sequence: 9,
            at: at(-5),
            from,
            to: Status::Unavailable,
            connectable_new: false,
            connectable_reconnect: true,
            confidence: Confidence::Absent,
            reasons: vec![reason()],
            trigger: "deadline".into(),
        });
    }
    for until in [None, Some(at(200))] {
        round::<_, v1::Drain>(&Drain {
            owner: "ann".into(),
            reason: "disk".into(),
            since: at(100),
            until,
        });
    }
    round::<_, v1::HostPolicy>(&HostPolicy {
        revision: "pool-7".into(),
        checks: vec![CheckPolicy {
            name: CheckName::new("urls").unwrap(),
            interval: Duration::from_millis(100),
            timeout: Duration::from_secs(10),
            rise: 1,
            fall: 2,
            severity: Severity::ReportOnly,
        }],
        urls: vec![RequiredUrl {
            url: "https://example.org/".into(),
            role: "token".into(),
        }],
        expected_domain: Some("example.org".into()),
    });
}

#[test]
fn announcements_come_back_as_they_went() {
    let leaves = [
        Leave::Poweroff,
        Leave::Reboot,
        Leave::Suspend,
        Leave::AgentStop,
        Leave::AgentRestart,
    ];
    round::<_, v1::PowerState>(&PowerAnnouncement::Running);
    for how in leaves {
        for back_within in [None, Some(Duration::from_secs(9))] {
            round::<_, v1::PowerState>(&PowerAnnouncement::Leaving { how, back_within });
        }
    }
    round::<_, v1::UpgradeState>(&UpgradeAnnouncement::Silent);
    round::<_, v1::UpgradeState>(&UpgradeAnnouncement::Cleared { id: "a-1".into() });
    for number in 1..=8 {
        let phase = UpgradePhase::from_wire(number).unwrap();
        round::<_, v1::UpgradeState>(&UpgradeAnnouncement::InProgress {
            attempt: attempt(phase),
            within: Some(Duration::from_secs(60)),
        });
    }
}

#[test]
fn every_word_has_its_own_number_and_unknown_numbers_have_no_word() {
    fn both_ways<T: Word + Copy + PartialEq + std::fmt::Debug>(words: &[T]) {
        for word in words {
            assert_eq!(T::from_wire(word.to_wire()), Some(*word));
        }
        for number in [i32::MIN, -1, 0, NEWER, i32::MAX] {
            assert_eq!(T::from_wire(number), None);
        }
    }
    both_ways(Status::ALL);
    both_ways(Intent::ALL);
    both_ways(Confidence::ALL);
    both_ways(SafeToPowerOff::ALL);
    both_ways(&[Severity::Fatal, Severity::NonFatal, Severity::ReportOnly]);
    both_ways(&[UpgradePhase::Preflight, UpgradePhase::Rollback]);
}

#[test]
fn values_of_a_newer_version_are_never_healthy() {
    let cannot_run = Outcome::Unknown(UnknownCause::CannotRun);
    let timed_out = v1::UnknownCause::TimedOut as i32;
    for number in [0, NEWER, v1::CheckOutcome::Unknown as i32] {
        assert_eq!(outcome(number, NEWER), cannot_run);
        assert_eq!(outcome(number, 0), cannot_run);
        assert_eq!(
            outcome(number, timed_out),
            Outcome::Unknown(UnknownCause::TimedOut)
        );
    }
    let leaving = v1::PowerState {
        kind: NEWER,
        back_within_ms: 0,
    };
    assert_eq!(
        power(Some(leaving)),
        PowerAnnouncement::Leaving {
            how: Leave::AgentStop,
            back_within: None
        }
    );
    let upgrade = v1::UpgradeState {
        kind: v1::UpgradeKind::InProgress as i32,
        attempt_id: "a".into(),
        phase: NEWER,
        ..Default::default()
    };
    match UpgradeAnnouncement::try_from(upgrade).unwrap() {
        UpgradeAnnouncement::InProgress { attempt, within } => {
            assert!(!attempt.phase.is_switching());
            assert_eq!(within, None);
        }
        other => panic!("{other:?}"),
    }
    let unknown_kind = v1::UpgradeState {
        kind: NEWER,
        ..Default::default()
    };
    assert_eq!(
        UpgradeAnnouncement::try_from(unknown_kind).unwrap(),
        UpgradeAnnouncement::Silent
    );
    let newer = v1::Verdict {
        status: NEWER,
        intent: NEWER,
        confidence: NEWER,
        safe_to_power_off: NEWER,
        ..verdict().into()
    };
    let read = Verdict::try_from(newer).unwrap();
    assert_eq!(read.status, Status::Unavailable);
    assert_eq!(read.intent, Intent::New);
    assert_eq!(read.confidence, Confidence::Unverified);
    assert_eq!(read.safe_to_power_off, SafeToPowerOff::Unknown);
    assert!(read.connectable, "the booleans stand beside the label");
}

#[test]
fn what_is_not_said_has_its_meaning() {
    let hello = v1::Hello {
        boot_id: "b".into(),
        instance_id: "i".into(),
        ..Default::default()
    };
    let read = Hello::try_from(hello).unwrap();
    assert_eq!(read.power, PowerAnnouncement::Running);
    assert_eq!(read.upgrade, UpgradeAnnouncement::Silent);
    let beat = Beat::from(v1::Beat::default());
    assert_eq!(beat.sessions.total(), None, "unknown is not zero");
    assert_eq!(beat.results_valid, Duration::ZERO);
    let policy = v1::CheckPolicy {
        name: "urls".into(),
        ..Default::default()
    };
    let read = CheckPolicy::try_from(policy).unwrap();
    assert_eq!(read.pace(), muster_core::model::CheckPace::default());
    let check = v1::CheckResult {
        name: "urls".into(),
        ..Default::default()
    };
    let read = CheckResult::try_from(check).unwrap();
    assert_eq!(&*read.kind, "urls");
    assert_eq!(read.age, None);
}

#[test]
fn a_message_that_breaks_the_contract_is_refused_by_field() {
    let report = |change: &dyn Fn(&mut v1::Report)| {
        let mut wire = report().into();
        change(&mut wire);
        problem::<Report, _>(wire)
    };
    let named = |name: &str| v1::CheckResult {
        name: name.into(),
        ..Default::default()
    };
    let many = |count: usize| (0..count).map(|at| named(&format!("c{at}"))).collect();
    let listener = v1::Listener {
        protocol: "ssh".into(),
        addresses: vec![],
        port: 22,
    };
    assert_eq!(
        report(&|wire| wire.checks = many(65)),
        "checks: has 65 elements; at most 64 are allowed"
    );
    assert_eq!(
        report(&|wire| wire.listeners = vec![listener.clone(); 33]),
        "listeners: has 33 elements; at most 32 are allowed"
    );
    assert_eq!(
        report(&|wire| wire.checks = vec![named("a"), named("b"), named("a")]),
        "checks[2].name: \"a\" stands there twice"
    );
    assert_eq!(
        report(&|wire| wire.checks = vec![named("a"), named("A\u{1b}[31m")]),
        "checks[1].name: the check name has 'A' at character 1; \
         allowed are a-z, 0-9, and inside the name also '_', '.' and '-'"
    );
    assert_eq!(
        report(&|wire| wire.checks = vec![named(&"n".repeat(300))]),
        "checks[0].name: the check name has 300 characters; at most 64 are allowed"
    );
    for port in [0, 65536, u32::MAX] {
        assert_eq!(
            report(&|wire| wire.listeners[0].port = port),
            format!("listeners[0].port: is {port}; allowed are 1 to 65535")
        );
    }
    assert_eq!(
        report(&|wire| wire.listeners[0].protocol.clear()),
        "listeners[0].protocol: is missing"
    );
    assert_eq!(
        report(&|wire| wire.upgrade.as_mut().unwrap().attempt_id.clear()),
        "upgrade.attempt_id: is missing"
    );
    assert_eq!(
        report(&|wire| wire.policy_revision = "p".repeat(129)),
        "policy_revision: has 129 bytes; at most 128 are allowed"
    );
}

#[test]
fn a_cloud_is_kept_clean_and_one_without_a_machine_is_none() {
    let read = |change: &dyn Fn(&mut v1::CloudInstance)| {
        let mut wire = v1::Report::from(report());
        change(wire.cloud.as_mut().unwrap());
        Report::try_from(wire).unwrap().cloud
    };
    assert_eq!(read(&|_| {}), report().cloud);
    let long = read(&|wire| wire.region = "\u{1b}[31m".repeat(300)).unwrap();
    assert!(long.region.len() <= 128 && !long.region.contains('\u{1b}'));
    assert_eq!(read(&|wire| wire.instance_id.clear()), None);
    assert_eq!(read(&|wire| wire.provider = " \n".to_owned()), None);
}

#[test]
fn a_hello_without_boot_or_with_odd_ids_is_refused() {
    let hello = |change: &dyn Fn(&mut v1::Hello)| {
        let mut wire = hello().into();
        change(&mut wire);
        problem::<Hello, _>(wire)
    };
    assert_eq!(hello(&|wire| wire.boot_id.clear()), "boot_id: is missing");
    assert_eq!(
        hello(&|wire| wire.instance_id = "a\nb".into()),
        "instance_id: has '\\n'; allowed are printable ASCII characters, no spaces"
    );
    assert_eq!(
        hello(&|wire| wire.resume_token = vec![0; 65].into()),
        "resume_token: has 65 bytes; at most 64 are allowed"
    );
}

#[test]
fn a_policy_that_would_make_a_host_spin_is_refused() {
    let policy = v1::HostPolicy {
        checks: vec![v1::CheckPolicy {
            name: "urls".into(),
            interval_ms: 99,
            ..Default::default()
        }],
        ..Default::default()
    };
    assert_eq!(
        problem::<HostPolicy, _>(policy),
        "checks[0].interval_ms: is 99; at least 100 is allowed"
    );
    let policy = v1::HostPolicy {
        urls: vec![v1::RequiredUrl {
            url: "https://example.org/\n".into(),
            role: String::new(),
        }],
        ..Default::default()
    };
    assert_eq!(
        problem::<HostPolicy, _>(policy),
        "urls[0].url: has control characters"
    );
}

#[test]
fn an_agent_is_told_every_check_that_its_pool_weighs() {
    let mut pool = PoolPolicy::default();
    let gpu = CheckName::new("gpu").unwrap();
    pool.severities.insert(gpu.clone(), Severity::ReportOnly);
    let told = HostPolicy::try_from(host_policy(&pool)).unwrap();
    assert_eq!(told.revision, pool.revision);
    assert_eq!(told.checks.len(), default_check_names().len() + 1);
    assert_eq!(told.check("gpu").unwrap().severity, Severity::ReportOnly);
    assert_eq!(told.check("domain").unwrap().severity, Severity::Fatal);
    assert_eq!(told.check("urls").unwrap().severity, Severity::NonFatal);
}

#[test]
fn giant_texts_become_small_and_clean() {
    let giant = "\u{1b}x".repeat(1 << 20);
    let wire = v1::Hello {
        os: giant.clone(),
        agent_version: giant.clone(),
        addresses: vec![giant.clone(); 100],
        ..hello().into()
    };
    let read = Hello::try_from(wire).unwrap();
    let texts = [&*read.os, &*read.agent_version];
    for text in texts
        .into_iter()
        .chain(read.addresses.iter().map(String::as_str))
    {
        assert!(
            text.len() <= 128 && !text.contains('\u{1b}'),
            "{}",
            text.len()
        );
    }
    assert_eq!(read.addresses.len(), MAX_ADDRESSES);

    let mut wire = v1::CheckResult::from(&check("urls", Outcome::Fail, Outcome::Fail));
    wire.message.clone_from(&giant);
    wire.kind.clone_from(&giant);
    wire.findings[0].message.clone_from(&giant);
    wire.findings = vec![wire.findings[0].clone(); 50];
    wire.truncated = false;
    let read = CheckResult::try_from(wire).unwrap();
    assert!(read.truncated);
    assert!(read.message.len() <= MAX_MESSAGE_BYTES);
    assert!(read.kind.len() <= 64);
    let size: usize = v1::CheckResult::from(read).encoded_len();
    assert!(size < 2 * MAX_FINDINGS_BYTES, "{size}");

    let wire = v1::UpgradeState {
        kind: v1::UpgradeKind::Failed as i32,
        attempt_id: "a".into(),
        error: giant,
        ..Default::default()
    };
    match UpgradeAnnouncement::try_from(wire).unwrap() {
        UpgradeAnnouncement::Failed { error, .. } => assert!(error.len() <= 512),
        other => panic!("{other:?}"),
    }
}

#[test]
fn instants_and_durations_stay_within_what_clocks_can_add() {
    for instant_ns in [0, 1, -1, -1_500_000_000, 1_700_000_000_123_456_789] {
        let before = Timestamp::from_nanosecond(instant_ns).unwrap();
        let wire = timestamp(before);
        assert!((0..1_000_000_000).contains(&wire.nanos));
        assert_eq!(instant("at", Some(wire)), Ok(before));
    }
    for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000)] {
        let wire = prost_types::Timestamp { seconds, nanos };
        let text = instant("at", Some(wire)).unwrap_err().to_string();
        assert!(text.contains("is not an instant"), "{text}");
    }
    assert_eq!(
        instant("at", None).unwrap_err().to_string(),
        "at: is missing"
    );
    assert_eq!(duration(u64::MAX), MAX_DURATION);
    assert!(at(0).checked_add(MAX_DURATION).is_ok());
    assert_eq!(millis(Duration::MAX), u64::MAX);
}

#[test]
fn a_full_report_stays_under_the_message_s_limit() {
    let mut big = report();
    let finding = Finding {
        subject: "s".repeat(5000),
        code: "C".repeat(500),
        message: "m".repeat(5000),
        steps: vec!["t".repeat(5000); 100],
        remedy: Some(Remedy::text("r".repeat(5000)).command("c".repeat(5000))),
    };
    big.checks = (0..64)
        .map(|at| {
            let mut check = check(&format!("{at:064}"), Outcome::Fail, Outcome::Fail);
            check.message = "m".repeat(5000);
            check.findings = vec![finding.clone(); 50];
            check.bounded()
        })
        .collect();
    let size = v1::Report::from(big).encoded_len();
    assert!(size < 256 * 1024, "{size}");
}

/// Decodes `bytes` with some of them changed, reads it, and if it is accepted, demands that what
/// was understood is what would be sent.
fn hold_when_damaged<T, W>(mut bytes: Vec<u8>, changes: &[(usize, u8)]) -> Result<(), TestCaseError>
where
    T: PartialEq + std::fmt::Debug + TryFrom<W>,
    for<'a> W: From<&'a T> + prost::Message + Default,
{
    for (at, byte) in changes {
        let at = at % bytes.len();
        bytes[at] = *byte;
    }
    let Ok(wire) = W::decode(bytes.as_slice()) else {
        return Ok(());
    };
    let Ok(read) = T::try_from(wire) else {
        return Ok(());
    };
    prop_assert_eq!(T::try_from(W::from(&read)).ok(), Some(read));
    Ok(())
}

proptest! {
    #[test]
    fn damaged_messages_are_refused_or_mean_what_they_say(
        changes in vec((any::<usize>(), any::<u8>()), 1..20),
    ) {
        let bytes = v1::Report::from(report()).encode_to_vec();
        hold_when_damaged::<Report, v1::Report>(bytes, &changes)?;
        let bytes = v1::Hello::from(hello()).encode_to_vec();
        hold_when_damaged::<Hello, v1::Hello>(bytes, &changes)?;
        let bytes = v1::Verdict::from(verdict()).encode_to_vec();
        hold_when_damaged::<Verdict, v1::Verdict>(bytes, &changes)?;
    }
}
