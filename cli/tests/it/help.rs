//! Help that teaches: the top level word for word, examples at every verb, completions.

use crate::server::{Ran, telecine};

async fn run(arguments: &[&str]) -> Ran {
    telecine(arguments).output().await.unwrap().into()
}

/// `telecine --help`, word for word. After a wanted change: `telecine --help > cli/tests/it/help.txt`.
#[tokio::test]
async fn the_top_level_is_as_agreed() {
    let help = run(&["--help"]).await.expect(0).out;
    assert_eq!(help, include_str!("help.txt"));
}

#[tokio::test]
async fn every_verb_teaches_by_example() {
    let verbs: [&[&str]; 40] = [
        &["up"],
        &["stop"],
        &["agent"],
        &["simulate"],
        &["doctor"],
        &["completions"],
        &["jobs", "submit"],
        &["jobs", "get"],
        &["jobs", "list"],
        &["jobs", "watch"],
        &["jobs", "logs"],
        &["jobs", "explain"],
        &["jobs", "cancel"],
        &["jobs", "retry"],
        &["jobs", "hold"],
        &["jobs", "release"],
        &["jobs", "update"],
        &["factories", "create"],
        &["factories", "list"],
        &["factories", "get"],
        &["factories", "update"],
        &["factories", "delete"],
        &["stores", "create"],
        &["stores", "list"],
        &["stores", "validate"],
        &["stores", "put"],
        &["stores", "ls"],
        &["stores", "delete"],
        &["engines", "publish"],
        &["engines", "list"],
        &["engines", "withdraw"],
        &["instances", "list"],
        &["instances", "drain"],
        &["instances", "undrain"],
        &["pools", "decisions"],
        &["pools", "decisions", "replay"],
        &["pools", "list"],
        &["regions", "list"],
        &["keys", "create"],
        &["keys", "revoke"],
    ];
    for verb in verbs {
        let help = run(&[verb, &["--help"]].concat()).await.expect(0).out;
        assert!(help.contains("Examples:") && help.contains("telecine "), "{verb:?} has no example: {help}");
    }
}

#[tokio::test]
async fn shells_are_completed() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).await.expect(0).out;
        assert!(script.contains("factories"), "{shell}");
    }
}

#[tokio::test]
async fn a_wrong_command_line_is_usage() {
    run(&["jobs", "submit"]).await.expect(2);
    run(&["jobs", "explode"]).await.expect(2);
    run(&["jobs", "submit", "--service", "x", "--file", "-", "--cpu", "many"]).await.expect(2);
}
