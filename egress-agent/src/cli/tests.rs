use super::*;
use clap::{CommandFactory as _, builder::ValueRange};

const WIDENING: [&str; 7] = ["allow", "proxy", "gateway", "observe", "user", "keep-cap", "keep-fd"];

fn code(line: &str) -> u8 {
    let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
    command_line(&words)
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn verbs_are_those_of_this_build() {
    let command = Cli::command();
    let verbs: Vec<_> = command.get_subcommands().map(clap::Command::get_name).collect();
    assert_eq!(
        verbs,
        [
            "run", "attach", "detach", "reload", "status", "events", "explain", "check", "verify", "preload", "doctor",
            "version"
        ]
    );
    for later in LATER {
        assert!(!verbs.contains(&later));
        assert_eq!(code(&format!("egressd --state-dir /x {later} --whatever")), 2);
    }
}

#[test]
fn usage_errors_are_125_for_run_and_2_for_the_rest() {
    for line in [
        "egressd run",
        "egressd run --nonsense -- true",
        "egressd --state-dir /x run true",
        "egressd run --timeout soon -- true",
    ] {
        assert_eq!(code(line), 125, "{line}");
    }
    for line in [
        "egressd rnu -- true",
        "egressd attach",
        "egressd detach",
        "egressd status --nonsense",
        "egressd check",
        "egressd",
    ] {
        assert_eq!(code(line), 2, "{line}");
    }
    for line in ["egressd --help", "egressd run --help", "egressd --version", "egressd version"] {
        assert_eq!(code(line), 0, "{line}");
    }
}

#[test]
fn a_guest_is_named_by_its_device_and_its_addresses() {
    for line in [
        "egressd attach --self 198.51.100.7",
        "egressd attach --device veth0 --self nobody",
        "egressd attach --device veth0 --self 198.51.100.7 --strict",
        "egressd detach --device veth0 --all",
    ] {
        assert_eq!(code(line), 2, "{line}");
    }
    for line in [
        "egressd attach --device veth0 --self 198.51.100.7 2001:db8::7 --allow a.example.com",
        "egressd attach --device veth0 --self 198.51.100.7 --self 2001:db8::7",
        "egressd detach --device veth0",
    ] {
        assert!(parse(line).is_ok(), "{line}");
    }
}

#[test]
fn a_command_stands_behind_two_dashes_and_is_left_alone() {
    let cli = parse("egressd run --allow a.example.com -- env --allow x -- y").unwrap();
    let Verb::Run(run) = cli.verb else { panic!("run") };
    assert_eq!(run.command, ["env", "--allow", "x", "--", "y"]);
    assert!(parse("egressd run env").is_err());
}

#[test]
fn pins_follow_the_state_directory() {
    let directories = |line: &str| parse(line).unwrap().places.directories();
    assert_eq!(directories("egressd status").pin, PathBuf::from("/run/egressd/bpf"));
    assert_eq!(directories("egressd status --state-dir /x").pin, PathBuf::from("/x/bpf"));
    assert_eq!(directories("egressd --pin-dir /y status --state-dir /x").pin, PathBuf::from("/y"));
}

#[test]
fn variables_never_widen() {
    let command = Cli::command();
    for verb in ["run", "attach"] {
        let verb = command.find_subcommand(verb).unwrap();
        for arg in verb.get_arguments() {
            let Some(long) = arg.get_long().filter(|&long| !["help", "self", "pid"].contains(&long)) else { continue };
            let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned());
            let expected = format!("EGRESSD_{}", long.to_ascii_uppercase().replace('-', "_"));
            let expected = (!WIDENING.contains(&long)).then_some(expected);
            assert_eq!(variable, expected, "--{long}");
        }
    }
}

#[test]
fn every_flag_with_a_value_is_explained_by_an_example() {
    for verb in Cli::command().get_subcommands() {
        for arg in verb.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_long().is_some()) {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let takes_value = arg.get_num_args().unwrap_or(ValueRange::EMPTY).takes_values();
            let long = arg.get_long().unwrap_or_default();
            assert!(!help.is_empty(), "{} --{long}", verb.get_name());
            assert!(!takes_value || help.contains(&format!("--{long}")), "{} --{long}: {help}", verb.get_name());
        }
    }
}
