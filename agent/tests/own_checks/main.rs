//! Plugins as the agent keeps them: the agent's own program, real plugins, real processes.

// Clippy takes a module for one of tests by this mark alone.
#[cfg(test)]
mod machine;

use std::{fs, path::Path, time::Duration};

use machine::Machine;
use muster_core::{
    agent::Observation,
    model::{Outcome, UnknownCause},
};
use rustix::process::{Pid, test_kill_process};

/// Where Debian's `monitoring-plugins-basic` has its plugins; `tests/run` installs them.
const PLUGINS: &str = "/usr/lib/nagios/plugins";
const LONG: Duration = Duration::from_secs(20);
const UNKNOWN: Outcome = Outcome::Unknown(UnknownCause::CannotRun);

fn steps(seen: &Observation) -> String {
    seen.findings[0].steps.join("\n")
}

/// Waits for a condition that another process makes true.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        let mut look = tokio::time::interval(Duration::from_millis(10));
        while !condition() {
            look.tick().await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect(what);
}

fn assert_gone(processes: &[Pid]) {
    for pid in processes {
        assert!(test_kill_process(*pid).is_err(), "{pid:?} is left");
    }
}

/// Ignores SIGTERM, and has a child that leaves its session and forks twice; each writes its id.
const WEDGED: &str = r#"
trap '' TERM HUP INT
echo $$ > SAID/plugin
setsid bash -c '
    trap "" TERM HUP INT
    echo $$ > SAID/session
    (env -i bash -c "trap \"\" TERM HUP INT; echo \$\$ > SAID/forked; while :; do sleep 1000; done" &) &
    while :; do sleep 1000; done
' > /dev/null 2>&1 < /dev/null &
while :; do sleep 1000; done
"#;

#[tokio::test]
async fn a_wedged_plugin_is_ended_with_all_that_it_started() {
    let machine = Machine::new();
    let keys = machine.script(WEDGED);
    let seen = machine.check(&keys, Duration::from_secs(3)).await;
    assert_eq!(
        seen.outcome,
        Outcome::Unknown(UnknownCause::TimedOut),
        "{seen:?}"
    );
    assert_eq!(seen.findings[0].code, "PLUGIN_TIMED_OUT");
    assert!(
        steps(&seen).contains("killed what it left behind"),
        "{seen:?}"
    );
    let processes = machine.processes();
    assert_eq!(processes.len(), 3, "the plugin did not get to what it does");
    assert_gone(&processes);
}

#[tokio::test]
async fn a_run_that_is_given_up_ends_its_processes_too() {
    let machine = Machine::new();
    let keys = machine.script(WEDGED);
    let run = tokio::spawn(machine.check(&keys, LONG));
    until("the plugin to start", || machine.processes().len() == 3).await;
    let processes = machine.processes();
    run.abort();
    until("its processes to end", || {
        processes.iter().all(|pid| test_kill_process(*pid).is_err())
    })
    .await;
}

#[tokio::test]
async fn the_mark_finds_what_is_left_when_the_keeper_is_killed() {
    let machine = Machine::new();
    // Its parent is the keeper. It can be killed by who runs as the same user.
    let keys = machine.script(&format!(
        "echo $PPID > SAID/keeper\n{}",
        WEDGED.replace("env -i ", "")
    ));
    let run = tokio::spawn(machine.check(&keys, LONG));
    until("the plugin to start", || machine.processes().len() == 4).await;
    let processes = machine.processes();
    let keeper = fs::read_to_string(machine.said("keeper")).unwrap();
    let keeper = Pid::from_raw(keeper.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(keeper, rustix::process::Signal::KILL).unwrap();
    let seen = run.await.unwrap();
    assert_eq!(seen.findings[0].code, "PLUGIN_KEEPER", "{seen:?}");
    let left: Vec<_> = processes.into_iter().filter(|pid| *pid != keeper).collect();
    // Killed, they wait for whoever adopted them to notice.
    until("its processes to end", || {
        left.iter().all(|pid| is_dead(*pid))
    })
    .await;
}

fn is_dead(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z ") || stat.contains(") X "))
}

#[tokio::test]
async fn a_plugin_that_leaves_a_daemon_behind_is_cleaned_up_after() {
    let machine = Machine::new();
    let keys = machine.script(
        "setsid bash -c 'echo $$ > SAID/daemon; exec sleep 1000' &\n\
         while [ ! -s SAID/daemon ]; do :; done\necho fine\n",
    );
    let seen = machine.check(&keys, LONG).await;
    assert_eq!((seen.outcome, &*seen.message), (Outcome::Pass, "fine"));
    assert_gone(&machine.processes());
}

#[tokio::test]
async fn ten_megabytes_of_output_are_read_and_four_kibibytes_kept() {
    let machine = Machine::new();
    let keys = machine
        .script("echo first; head -c 10485760 /dev/zero | tr '\\0' x; echo $? > SAID/end; exit 1");
    let seen = machine.check(&keys, LONG).await;
    assert_eq!((seen.outcome, &*seen.message), (Outcome::Warn, "first"));
    assert!(
        steps(&seen).contains("more than the 4096 bytes"),
        "{seen:?}"
    );
    assert!(format!("{seen:?}").len() < 16 << 10);
    assert!(machine.said("end").exists(), "it was not read to its end");
}

#[tokio::test]
async fn a_check_never_runs_twice_at_once() {
    let machine = Machine::new();
    let keys = machine
        .script("echo $$ > SAID/plugin; while [ ! -e SAID/go ]; do sleep 0.05; done; echo done");
    let first = tokio::spawn(machine.check(&keys, LONG));
    until("the plugin to start", || !machine.processes().is_empty()).await;
    let before = machine.processes();
    let second = machine.check(&keys, Duration::from_millis(400)).await;
    assert_eq!(
        (second.outcome, &*second.findings[0].code),
        (UNKNOWN, "PLUGIN_STILL_RUNS")
    );
    assert_eq!(machine.processes(), before, "it was started again");
    fs::write(machine.said("go"), "").unwrap();
    assert_eq!(first.await.unwrap().outcome, Outcome::Pass);
}

#[tokio::test]
async fn exit_codes_and_words_are_those_of_the_protocol() {
    let machine = Machine::new();
    let table = [
        (
            "echo 'OK - fine | a=1'",
            Outcome::Pass,
            "PLUGIN_OK",
            "OK - fine",
        ),
        ("echo slow; exit 1", Outcome::Warn, "PLUGIN_WARNING", "slow"),
        (
            "echo broken; exit 2",
            Outcome::Fail,
            "PLUGIN_CRITICAL",
            "broken",
        ),
        ("echo what; exit 3", UNKNOWN, "PLUGIN_UNKNOWN", "what"),
        (
            "exit 2",
            Outcome::Fail,
            "PLUGIN_CRITICAL",
            "it said nothing",
        ),
        (
            "echo why >&2; exit 2",
            Outcome::Fail,
            "PLUGIN_CRITICAL",
            "why",
        ),
        (
            "exit 7",
            UNKNOWN,
            "PLUGIN_EXIT",
            "it ended with 7, not with 0 to 3",
        ),
        ("kill -9 $$", UNKNOWN, "PLUGIN_KILLED", "signal 9 ended it"),
    ];
    for (text, outcome, code, message) in table {
        let seen = machine.check(&machine.script(text), LONG).await;
        assert_eq!(
            (seen.outcome, &*seen.message),
            (outcome, message),
            "{text}: {seen:?}"
        );
        assert_eq!(seen.findings[0].code, code);
        assert_eq!(seen.findings[0].remedy.is_some(), outcome != Outcome::Pass);
    }
    let seen = machine
        .check("command = '/no/such/plugin'\nargs = ['hunter2']", LONG)
        .await;
    assert_eq!(
        (seen.outcome, &*seen.findings[0].code),
        (UNKNOWN, "PLUGIN_NOT_STARTED")
    );
    assert!(
        !format!("{seen:?}").contains("hunter2"),
        "an argument is told: {seen:?}"
    );
}

#[tokio::test]
async fn a_plugin_has_the_rights_and_the_surroundings_that_it_should() {
    let machine = Machine::new();
    let keys = machine
        .script("echo $(id -un) $(id -G) $PWD $(ls -l /proc/self/fd | grep -c data) ${HOME-none}");
    let seen = machine.check(&keys, LONG).await;
    if rustix::process::geteuid().is_root() {
        assert_eq!(seen.message, "nobody 65534 / 0 none");
        let seen = machine
            .check(&format!("{keys}\nuser = 'daemon'"), LONG)
            .await;
        assert_eq!(seen.message, "daemon 1 / 0 none");
    } else {
        assert!(seen.message.ends_with("/ 0 none"), "{}", seen.message);
        let seen = machine
            .check(&format!("{keys}\nuser = 'daemon'"), LONG)
            .await;
        assert_eq!(seen.findings[0].code, "PLUGIN_USER");
    }
    let seen = machine
        .check(&format!("{keys}\nuser = 'nosuchuser'"), LONG)
        .await;
    assert_eq!(
        (seen.outcome, &*seen.findings[0].code),
        (UNKNOWN, "PLUGIN_USER")
    );
    assert!(seen.message.contains("nosuchuser"), "{}", seen.message);
}

#[tokio::test]
async fn a_plugin_that_others_can_change_does_not_run() {
    let machine = Machine::new();
    let keys = machine.script("echo $$ > SAID/ran; echo fine");
    machine.open_to_all();
    let seen = machine.check(&keys, LONG).await;
    let found = (seen.outcome, &*seen.findings[0].code);
    assert_eq!(found, (UNKNOWN, "PLUGIN_EXPOSED"));
    assert!(seen.message.contains("mode 0777"), "{}", seen.message);
    assert!(!machine.said("ran").exists());
}

#[tokio::test]
async fn the_plugins_of_debian_work_as_they_are() {
    assert!(
        Path::new(PLUGINS).join("check_dummy").exists(),
        "install them: tests/run --install"
    );
    let machine = Machine::new();
    let table = [
        (
            "check_dummy",
            "'0', 'all is well'",
            Outcome::Pass,
            "OK: all is well",
        ),
        ("check_dummy", "'1', 'hm'", Outcome::Warn, "WARNING: hm"),
        ("check_dummy", "'2'", Outcome::Fail, "CRITICAL"),
        ("check_dummy", "'3'", UNKNOWN, "UNKNOWN"),
        (
            "check_load",
            "'-w', '9999,9999,9999', '-c', '9999,9999,9999'",
            Outcome::Pass,
            "LOAD OK",
        ),
        ("check_procs", "'-c', '1:'", Outcome::Pass, "PROCS OK"),
        (
            "check_disk",
            // It finds file systems in /etc/mtab, which a bare root does not have.
            "'-w', '0%', '-c', '0%', '-p', '/nonexistent'",
            Outcome::Fail,
            "DISK CRITICAL",
        ),
        (
            "check_tcp",
            "'-H', '127.0.0.1', '-p', '1'",
            Outcome::Fail,
            "refused",
        ),
        (
            "check_file_age",
            "'-f', '/etc/passwd', '-c', '1', '-w', '1'",
            Outcome::Fail,
            "FILE_AGE CRITICAL",
        ),
    ];
    for (plugin, args, outcome, says) in table {
        let keys = format!("command = '{PLUGINS}/{plugin}'\nargs = [{args}]");
        let seen = machine.check(&keys, LONG).await;
        assert_eq!(seen.outcome, outcome, "{plugin}: {seen:?}");
        assert!(seen.message.contains(says), "{plugin}: {}", seen.message);
        assert!(!seen.message.contains('|'), "{plugin}: {}", seen.message);
    }
}
