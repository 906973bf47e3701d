//! Who may speak for a host, probes that convict, and what the fleet's rules impose.

use super::*;

/// A newcomer of another process, with that token.
fn newcomer(world: &World, instance: &str, token: Option<ResumeToken>) -> Event {
    Event::Opened {
        epoch: Epoch::new(1, world.epoch + 1),
        hello: Hello {
            agent_version: "0.1.0".into(),
            boot_id: format!("boot-of-{instance}").into(),
            instance_id: instance.into(),
            resume_token: token,
            os: "Debian 12".into(),
            addresses: vec![],
            policy_revision: "default-1".into(),
            power: PowerAnnouncement::Running,
            upgrade: UpgradeAnnouncement::Silent,
        },
        terms: Terms {
            interval: INTERVAL,
            lease: LEASE,
        },
        peer_address: "10.9.9.9:1".into(),
        is_local: false,
        token: ResumeToken::new([77; 16]),
    }
}

fn asks(world: &mut World, instance: &str, token: Option<ResumeToken>) -> Admission {
    let event = newcomer(world, instance, token);
    let facts = world.host.facts().clone();
    let effects = world.handle(event);
    let admission = effects.admission.unwrap();
    if admission == Admission::Accepted {
        world.epoch += 1;
    } else {
        let now = world.host.facts();
        assert_eq!(
            (&now.session, &now.link, &now.health, &now.about),
            (&facts.session, &facts.link, &facts.health, &facts.about),
            "the incumbent's facts stand"
        );
    }
    admission
}

const IN_5_S: Admission = Admission::InUse {
    retry_after: Duration::from_secs(5),
};

#[test]
fn the_agent_comes_back_with_its_token_at_any_time() {
    let mut world = World::available();
    for _ in 0..20 {
        assert_eq!(world.open().admission, Some(Admission::Accepted));
        let _ = world.report(&[]);
        world.pass(secs(1));
        let _ = world.stream_ends();
    }
    assert!(world.host.facts().conflict.is_none());
}

#[test]
fn a_welcome_that_was_lost_locks_nobody_out() {
    let mut world = World::available();
    let held = world.token.clone();
    for _ in 0..3 {
        // The agent never hears the Welcome: it comes again with the token that it has.
        world.token.clone_from(&held);
        assert_eq!(world.open().admission, Some(Admission::Accepted));
        let _ = world.stream_ends();
        world.pass(secs(1));
    }
    // At last it hears one, and speaks.
    world.token.clone_from(&held);
    let _ = world.open();
    let _ = world.report(&[]);
    assert!(world.host.facts().conflict.is_none());
    // From here on the old token is used.
    let conflict = Admission::Conflict {
        retry_after: secs(60),
    };
    assert_eq!(asks(&mut world, "copy", held), conflict);
}

#[test]
fn a_copy_of_the_machine_never_takes_over_and_shows() {
    let mut world = World::available();
    let copied = world.token.clone();
    let _ = world.open();
    let _ = world.report(&[]);
    let conflict = Admission::Conflict {
        retry_after: secs(60),
    };
    assert_eq!(asks(&mut world, "copy", copied.clone()), conflict);
    assert_eq!(world.status(), Status::NeedsAssistance);
    assert!(world.assess().connectable_new, "the incumbent serves on");
    let reason = world.assess().reasons.remove(0);
    assert_eq!(reason.code, ReasonCode::IDENTITY_CONFLICT);
    assert_eq!(
        reason.evidence,
        ["heard from 10.0.0.7:1", "refused: 10.9.9.9:1"]
    );
    assert!(reason.remedy.unwrap().commands[0].contains("muster-broker trust vdi-01"));
    // Also while the incumbent's stream is gone, as long as its lease runs.
    let _ = world.stream_ends();
    assert_eq!(asks(&mut world, "copy", copied), conflict);
    // It is forgotten when the copy goes away.
    let _ = world.open();
    for _ in 0..70 {
        let _ = world.report(&[]);
        world.pass(secs(9));
    }
    let _ = world.handle(Event::Deadline);
    assert_eq!(world.status(), Status::Available);
}

#[test]
fn a_stranger_waits_for_the_incumbents_proof() {
    let mut world = World::available();
    assert_eq!(asks(&mut world, "stranger", None), IN_5_S);
    world.pass(secs(2));
    let again = Admission::InUse {
        retry_after: secs(3),
    };
    assert_eq!(asks(&mut world, "stranger", None), again, "asked once");
    let _ = world.beat();
    let conflict = Admission::Conflict {
        retry_after: secs(60),
    };
    assert_eq!(asks(&mut world, "stranger", None), conflict);

    // An incumbent that says nothing for five seconds loses its place.
    let mut world = World::available();
    let event = newcomer(&world, "stranger", None);
    let effects = world.handle(event);
    assert!(effects.challenge, "the incumbent is asked");
    world.pass(secs(5));
    assert_eq!(asks(&mut world, "stranger", None), Admission::Accepted);
}

#[test]
fn without_a_stream_a_stranger_waits_until_the_lease_is_over() {
    let mut world = World::available();
    let _ = world.stream_ends();
    assert_eq!(asks(&mut world, "stranger", None), IN_5_S);
    world.pass(secs(32));
    let last = Admission::InUse {
        retry_after: secs(2),
    };
    assert_eq!(asks(&mut world, "stranger", None), last);
    world.pass(secs(2));
    assert_eq!(asks(&mut world, "stranger", None), Admission::Accepted);
}

#[test]
fn after_a_restart_of_the_broker_nothing_is_known_of_tokens() {
    let mut world = World::available();
    world.restart_broker(secs(3), false);
    assert_eq!(asks(&mut world, "anybody", None), Admission::Accepted);
}

#[test]
fn an_operator_decides_whom_to_trust() {
    let conflict = Admission::Conflict {
        retry_after: secs(60),
    };
    let mut world = World::available();
    let copied = world.token.clone();
    let _ = world.open();
    let _ = world.report(&[]);
    assert_eq!(asks(&mut world, "copy", copied.clone()), conflict);
    let _ = world.handle(Event::Trust { newcomer: false });
    assert_eq!(world.status(), Status::Available);
    assert_eq!(asks(&mut world, "copy", copied.clone()), conflict);
    assert_eq!(world.status(), Status::Available, "decided is decided");

    let mut world = World::available();
    let copied = world.token.clone();
    let _ = world.open();
    let _ = world.report(&[]);
    let old = world.token.clone();
    assert_eq!(asks(&mut world, "copy", copied.clone()), conflict);
    let _ = world.handle(Event::Trust { newcomer: true });
    assert_eq!(asks(&mut world, "copy", copied), Admission::Accepted);
    let _ = world.report(&[]);
    assert_eq!(asks(&mut world, "instance-2", old), conflict);
    assert_eq!(world.status(), Status::Available);
}

fn convicted(world: &World, ago: u64) -> Event {
    Event::Convicted(Conviction {
        dialled_at: world.now.mono.back(secs(ago)),
        evidence: ["10.0.0.7:22 refused the broker".to_owned()].into(),
    })
}

#[test]
fn a_conviction_names_its_evidence_and_ends_with_the_next_settled_report() {
    let mut world = World::available();
    let _ = world.stream_ends();
    world.pass(secs(1));
    let event = convicted(&world, 0);
    let effects = world.handle(event);
    assert_eq!(effects.transition.unwrap().to, Status::Unavailable);
    let reason = &world.assess().reasons[0];
    assert_eq!(reason.code, ReasonCode::PROBE_REFUSED);
    assert_eq!(reason.evidence, ["10.0.0.7:22 refused the broker"]);
    // It outlives a restart of the broker.
    world.restart_broker(secs(5), false);
    assert_eq!(world.assess().reasons[0].evidence.len(), 1);
    let _ = world.open();
    let _ = world.report(&[]);
    assert_eq!(world.status(), Status::Available);
    assert!(world.host.facts().lost_evidence.is_empty());
}

#[test]
fn a_word_after_the_first_dial_acquits() {
    let mut world = World::available();
    let event = convicted(&world, 0);
    assert!(world.handle(event).stale, "it is heard");
    let _ = world.stream_ends();
    let _ = world.open();
    world.pass(secs(1));
    let event = convicted(&world, 2);
    assert!(world.handle(event).stale, "a hello is a word");
    assert!(world.assess().connectable_new);
    // The same of a stream that never broke: silent since before the dial.
    let _ = world.report(&[]);
    world.pass(secs(25));
    let event = convicted(&world, 1);
    assert!(!world.handle(event).stale);
    assert!(!world.assess().connectable_reconnect);
}

fn held(world: &mut World, until: u64, answers: HoldAnswers) -> Effects {
    let imposed = Imposed {
        hold: Some(Hold {
            since: world.now.wall,
            until: world.now.mono + secs(until),
            answers,
            evidence: "6 of 10 hosts of the pool fell silent at once".into(),
        }),
        ..Imposed::default()
    };
    world.handle(Event::Imposed(Arc::new(imposed)))
}

#[test]
fn a_hold_begins_to_show_when_the_lease_is_over_and_ends_by_itself() {
    let mut world = World::available();
    let _ = world.stream_ends();
    let effects = held(&mut world, 100, HoldAnswers::ReconnectOnly);
    assert!(effects.transition.is_none() && world.assess().connectable_new);
    world.pass(secs(34));
    let effects = world.handle(Event::Deadline);
    assert_eq!(effects.transition.unwrap().to, Status::Available);
    let assessed = world.assess();
    assert_eq!(
        (assessed.connectable_new, assessed.connectable_reconnect),
        (false, true)
    );
    assert_eq!(assessed.presence, Presence::Suspect(SuspectWhy::MassLoss));
    assert_eq!(assessed.reasons[0].code, ReasonCode::MASS_LOSS);
    world.pass(secs(65));
    assert!(world.assess().connectable_reconnect);
    world.pass(secs(1));
    assert!(!world.assess().connectable_reconnect, "at the question");
    let effects = world.handle(Event::Deadline);
    assert_eq!(effects.transition.unwrap().to, Status::Unavailable);
    assert_eq!(world.assess().reasons[0].code, ReasonCode::LEASE_OVER);
}

#[test]
fn an_ended_hold_lets_go_at_once() {
    let mut world = World::available();
    let _ = world.stream_ends();
    let _ = held(&mut world, 600, HoldAnswers::AsBefore);
    world.pass(secs(100));
    assert!(world.assess().connectable_new);
    let effects = world.handle(Event::Imposed(Arc::default()));
    assert_eq!(effects.transition.unwrap().to, Status::Unavailable);
    assert!(matches!(world.host.facts().link, Link::Lost { .. }));
}

#[test]
fn a_hold_carries_a_host_over_the_end_of_the_restart_window() {
    let mut world = World::available();
    world.restart_broker(secs(3), false);
    let _ = held(&mut world, 600, HoldAnswers::AsBefore);
    world.pass(secs(200));
    assert!(world.assess().connectable_new);
    assert_eq!(world.assess().presence.confidence(), Confidence::Suspect);
    world.pass(secs(400));
    assert!(!world.assess().connectable_new);
    let _ = world.handle(Event::Deadline);
    assert_eq!(world.codes(), ["NOT_BACK_AFTER_RESTART"]);
}

#[test]
fn a_rest_keeps_new_sessions_away_and_nobody_who_comes_back() {
    let mut world = World::available();
    let imposed = Imposed {
        held_down: Some(HeldDown {
            since: world.now.wall,
            until: world.now.mono + secs(30),
            losses: 3,
        }),
        ..Imposed::default()
    };
    let effects = world.handle(Event::Imposed(Arc::new(imposed)));
    assert_eq!(effects.transition.unwrap().to, Status::Available);
    let assessed = world.assess();
    assert_eq!(
        (assessed.connectable_new, assessed.connectable_reconnect),
        (false, true)
    );
    assert_eq!(world.codes(), ["HELD_DOWN"]);
    for _ in 0..3 {
        world.pass(secs(10));
        let _ = world.beat();
    }
    assert!(world.assess().connectable_new);
}

#[test]
fn a_host_lost_during_the_brokers_stall_has_a_lease_and_no_window() {
    let mut world = World::available();
    world.window_ends = Some(world.now.mono + LEASE + secs(60));
    let _ = world.handle(Event::BrokerStalled {
        unheard_until: None,
    });
    assert_eq!(world.assess().presence, Presence::Unverified);
    let _ = world.stream_ends();
    world.pass(secs(34));
    assert!(world.assess().connectable_new);
    world.pass(secs(1));
    assert!(!world.assess().connectable_new);
}

mod targets {
    use std::net::SocketAddr;

    use super::*;

    /// The target of a host that names these addresses and is heard from that one.
    fn target(own: &[&str], peer: &str, networks: &[&str], bound: &[&str], local: bool) -> String {
        let mut world = World::available();
        world.policy.probe = Some(ProbePolicy {
            networks: networks.iter().map(|net| net.parse().unwrap()).collect(),
            ..ProbePolicy::default()
        });
        with_facts(&mut world, |facts| {
            let mut about = (*facts.about).clone();
            about.addresses = own.iter().map(ToString::to_string).collect();
            about.peer_address = peer.into();
            about.is_local = local;
            facts.about = Arc::new(about);
            facts.listeners = Arc::new([Listener {
                protocol: "ssh".into(),
                addresses: bound.iter().map(ToString::to_string).collect(),
                port: 22,
            }]);
        });
        let effects = world.handle(Event::PolicyChanged);
        let standing = effects.standing;
        standing.and_then(|standing| standing.target).map_or_else(
            || "none".to_owned(),
            |target: SocketAddr| target.to_string(),
        )
    }

    #[test]
    fn only_an_own_address_is_dialled() {
        // Heard from where it says it is.
        assert_eq!(
            target(&["10.1.1.5"], "10.1.1.5:4", &[], &[], false),
            "10.1.1.5:22"
        );
        // Over an IPv4-mapped socket.
        assert_eq!(
            target(&["10.1.1.5"], "[::ffff:10.1.1.5]:4", &[], &[], false),
            "10.1.1.5:22"
        );
        // Behind a translating router or a balancer: that address is not its own.
        assert_eq!(
            target(&["192.168.0.5"], "10.1.1.5:4", &[], &[], false),
            "none"
        );
        assert_eq!(
            target(&["192.168.0.5"], "10.1.1.5:4", &["10.0.0.0/8"], &[], false),
            "none"
        );
        // An own address that the pool's networks hold.
        assert_eq!(
            target(
                &["192.168.0.5"],
                "10.1.1.5:4",
                &["192.168.0.0/24"],
                &[],
                false
            ),
            "192.168.0.5:22"
        );
        // A temporary IPv6 address is not named by the agent.
        assert_eq!(
            target(&["2001:db8::5"], "[2001:db8::1f3a]:4", &[], &[], false),
            "none"
        );
        assert_eq!(
            target(&["2001:db8::5"], "[2001:db8::5]:4", &[], &[], false),
            "[2001:db8::5]:22"
        );
    }

    #[test]
    fn never_loopback_link_local_or_the_broker_itself_unless_configured() {
        assert_eq!(
            target(&["127.0.0.1"], "127.0.0.1:4", &[], &[], true),
            "none"
        );
        assert_eq!(
            target(&["169.254.1.5"], "169.254.1.5:4", &[], &[], false),
            "none"
        );
        assert_eq!(target(&["fe80::5"], "[fe80::5]:4", &[], &[], false), "none");
        assert_eq!(target(&["10.1.1.5"], "10.1.1.5:4", &[], &[], true), "none");
        assert_eq!(
            target(&["10.1.1.5"], "127.0.0.1:4", &["127.0.0.0/8"], &[], true),
            "127.0.0.1:22"
        );
        assert_eq!(
            target(&["10.1.1.5"], "10.1.1.5:4", &["10.1.0.0/16"], &[], true),
            "10.1.1.5:22"
        );
    }

    #[test]
    fn a_listener_that_counts_strangers_is_dialled_only_where_there_is_no_other() {
        let mut world = World::available();
        world.policy.probe = Some(ProbePolicy::default());
        let listener = |protocol: &str, port| Listener {
            protocol: protocol.into(),
            addresses: vec![],
            port,
        };
        let mut target = |listeners: Vec<Listener>| {
            with_facts(&mut world, |facts| {
                let mut about = (*facts.about).clone();
                about.addresses = vec!["10.0.0.7".to_owned()];
                facts.about = Arc::new(about);
                facts.listeners = listeners.into();
            });
            let standing = world.handle(Event::PolicyChanged).standing;
            standing
                .and_then(|standing| standing.target)
                .map(|target| target.port())
        };
        let (vnc, rdp) = (listener("vnc", 5901), listener("rdp", 3389));
        assert_eq!(target(vec![vnc.clone(), rdp]), Some(3389));
        assert_eq!(target(vec![vnc]), Some(5901));
    }

    #[test]
    fn only_where_a_listener_is_bound() {
        let own = ["10.1.1.5", "10.2.2.5"];
        let networks = ["10.0.0.0/8"];
        assert_eq!(
            target(&own, "10.1.1.5:4", &networks, &["10.2.2.5"], false),
            "10.2.2.5:22"
        );
        assert_eq!(
            target(&own, "10.1.1.5:4", &networks, &["127.0.0.1"], false),
            "none"
        );
        assert_eq!(
            target(&own, "10.1.1.5:4", &networks, &["0.0.0.0"], false),
            "10.1.1.5:22"
        );
    }
}
