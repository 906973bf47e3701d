use super::*;

const PATIENCE: Duration = Duration::from_secs(10);
const MINUTE: Duration = Duration::from_secs(60);

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn upgrading(to: &str) -> Announcement {
    Announcement::Upgrading {
        to: to.to_owned(),
        within: Some(10 * MINUTE),
    }
}

fn applied(announcements: &[Announcement]) -> Announced {
    let mut state = Announced {
        boot_id: "boot-1".to_owned(),
        ..Announced::default()
    };
    for announcement in announcements {
        state.apply(announcement, "1.0.0", now());
    }
    state
}

fn shutdown(kind: Leave) -> Announcement {
    Announcement::Shutdown {
        kind,
        back_within: None,
    }
}

#[test]
fn an_upgrade_is_told_with_the_time_that_is_left() {
    let state = applied(&[upgrading("1.1.0")]);
    let UpgradeAnnouncement::InProgress { attempt, within } = state.upgrade(now() + 4 * MINUTE)
    else {
        panic!("{state:?}");
    };
    assert_eq!((&*attempt.from, &*attempt.to), ("1.0.0", "1.1.0"));
    assert_eq!(within, Some(6 * MINUTE));
    let UpgradeAnnouncement::InProgress { within, .. } = state.upgrade(now() + 60 * MINUTE) else {
        panic!("{state:?}");
    };
    assert!(
        within.unwrap() > Duration::ZERO,
        "zero would mean the default"
    );
}

#[test]
fn a_failure_belongs_to_the_upgrade_that_was_announced() {
    let state = applied(&[upgrading("1.1.0")]);
    let UpgradeAnnouncement::InProgress { attempt, .. } = state.upgrade(now()) else {
        panic!("{state:?}");
    };
    let failed = Announcement::UpgradeFailed {
        to: None,
        error: "no space".to_owned(),
    };
    let mut state = state;
    state.apply(&failed, "1.0.0", now());
    let expected = UpgradeAnnouncement::Failed {
        attempt: attempt.clone(),
        error: "no space".to_owned(),
    };
    assert_eq!(state.upgrade(now()), expected);
    state.apply(&Announcement::Running, "1.0.0", now());
    assert_eq!(
        state.upgrade(now()),
        UpgradeAnnouncement::Cleared { id: attempt.id }
    );
}

#[test]
fn a_reboot_withdraws_power_and_keeps_the_upgrade() {
    let state = applied(&[upgrading("1.1.0"), shutdown(Leave::Reboot)]);
    assert_ne!(state.power(now()), PowerAnnouncement::Running);
    let same = Announced::restored(Some(state.clone()), "boot-1", "1.0.0");
    assert_eq!(same, state);
    let next = Announced::restored(Some(state.clone()), "boot-2", "1.0.0");
    assert_eq!(next.power(now()), PowerAnnouncement::Running);
    assert_eq!(next.upgrade(now()), state.upgrade(now()));
}

#[test]
fn an_upgrade_is_over_once_the_agent_is_at_the_version() {
    let state = applied(&[upgrading("1.1.0")]);
    let newer = Announced::restored(Some(state), "boot-1", "1.1.0");
    assert_eq!(newer.upgrade(now()), UpgradeAnnouncement::Silent);
}

#[test]
fn the_system_wins_while_it_says_that_the_machine_leaves() {
    let mut state = applied(&[shutdown(Leave::Reboot)]);
    let poweroff = PowerAnnouncement::Leaving {
        how: Leave::Poweroff,
        back_within: None,
    };
    state.system = poweroff;
    assert_eq!(state.power(now()), poweroff);
    state.system = PowerAnnouncement::Running;
    let reboot = PowerAnnouncement::Leaving {
        how: Leave::Reboot,
        back_within: None,
    };
    assert_eq!(
        state.power(now()),
        reboot,
        "the administrator's word stands"
    );
}

#[tokio::test]
async fn a_word_is_kept_before_it_is_told_and_answered_when_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::new(folder.path());
    let (announcer, mut inbox) = Announcer::new(data.clone(), "boot-1", "1.0.0");
    let telling = announcer.clone();
    let told = tokio::spawn(async move {
        telling
            .announce(&shutdown(Leave::Poweroff), now(), PATIENCE)
            .await
            .unwrap()
    });
    let delivery = inbox.recv().await.unwrap();
    let kept: Announced = data.read(ANNOUNCEMENTS).unwrap();
    assert_eq!(delivery.word, Word::Power(kept.power(now())));
    delivery.acknowledged.send(()).unwrap();
    assert_eq!(told.await.unwrap(), Delivered::Acknowledged);
    let (again, _) = Announcer::new(data, "boot-1", "1.0.0");
    assert_eq!(again.watch().borrow().power(now()), kept.power(now()));
}

#[tokio::test(start_paused = true)]
async fn without_a_session_or_an_answer_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let (announcer, mut inbox) = Announcer::new(DataDir::new(folder.path()), "b", "1.0.0");
    let telling = announcer.clone();
    let told = tokio::spawn(async move {
        telling
            .system_power(PowerAnnouncement::Running, PATIENCE)
            .await
    });
    drop(inbox.recv().await.unwrap());
    assert_eq!(told.await.unwrap(), Delivered::NoSession);
    let telling = announcer.clone();
    let told = tokio::spawn(async move {
        telling
            .system_power(PowerAnnouncement::Running, PATIENCE)
            .await
    });
    let kept_waiting = inbox.recv().await.unwrap();
    assert_eq!(told.await.unwrap(), Delivered::NotAcknowledged);
    drop(kept_waiting);
}

#[tokio::test]
async fn what_cannot_be_kept_is_not_told() {
    let (announcer, mut inbox) = Announcer::new(DataDir::new("/proc/nowhere"), "b", "1.0.0");
    announcer
        .announce(&Announcement::Running, now(), PATIENCE)
        .await
        .unwrap_err();
    assert!(inbox.try_recv().is_err());
}
