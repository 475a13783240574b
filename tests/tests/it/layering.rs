//! The direction of the arrows (DESIGN, "Arrows"): which crate may depend on which, ours and others'.
//!
//! The rules are pure functions over edges, tested here with edges that break them; the last tests bring the edges of
//! this repository from `cargo metadata` and `cargo tree`. Dependencies that only tests need are not arrows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// "The first depends on the second." Our own crates are named by their folder, others by their name.
type Edge = (String, String);

/// What each of our crates (by folder) may depend on. A crate without a row is an error: whoever adds one decides
/// here, and in DESIGN, where it stands.
const ARROWS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("stores", &["domain"]),
    ("core", &["domain", "stores"]),
    ("mount", &[]),
    ("proto", &["domain"]),
    ("identity", &["core", "domain"]),
    ("api", &["core", "domain", "identity"]),
    ("manager", &["core", "domain", "proto"]),
    ("agent", &["domain", "mount", "proto", "stores"]),
    ("simulator", &["domain"]),
    ("backends/embedded", &["core", "domain", "stores"]),
    ("backends/aws", &["core", "domain"]),
    ("functions/*", &["api", "backends/aws", "core", "domain"]),
    ("engines/*", &["proto"]),
    (
        "cli",
        &[
            "agent",
            "api",
            "backends/aws",
            "backends/embedded",
            "core",
            "domain",
            "manager",
            "mount",
            "proto",
            "simulator",
            "stores",
        ],
    ),
    ("tests/support", &[]),
    (
        "tests",
        &[
            "agent",
            "api",
            "backends/aws",
            "backends/embedded",
            "core",
            "domain",
            "identity",
            "manager",
            "mount",
            "proto",
            "simulator",
            "stores",
        ],
    ),
];

/// Crates of others that only these crates of ours may name.
const OWNED: &[(&str, &[&str])] = &[
    ("bollard", &["agent"]),
    ("nvml-wrapper", &["agent"]),
    ("fuser", &["mount"]),
    ("aws-config", &["backends/aws"]),
    ("aws-sdk-*", &["backends/aws"]),
    ("rusqlite", &["backends/embedded"]),
    ("libsqlite3-sys", &["rusqlite"]),
];

/// What may not be reached from a crate of ours, however far down.
const UNREACHABLE: &[(&str, &[&str])] = &[
    (
        "domain",
        &[
            "tokio",
            "async-*",
            "futures*",
            "tonic",
            "tracing",
            "rand",
            "getrandom",
            "aws-*",
            "object_store",
            "reqwest",
            "hyper",
        ],
    ),
    ("core", &["aws-config", "aws-sdk-*", "rusqlite", "libsqlite3-sys", "tonic", "axum", "bollard", "fuser"]),
    ("api", &["aws-config", "aws-sdk-*", "rusqlite", "libsqlite3-sys", "tonic", "bollard", "fuser"]),
    ("agent", &["core", "rusqlite", "libsqlite3-sys", "aws-config", "aws-sdk-*"]),
    ("manager", &["rusqlite", "libsqlite3-sys", "aws-config", "aws-sdk-*", "bollard", "fuser"]),
    ("mount", &["domain", "tonic", "axum", "bollard"]),
    ("simulator", &["tokio", "tonic", "rusqlite"]),
    ("functions/*", &["tonic", "bollard", "fuser", "rusqlite", "libsqlite3-sys"]),
];

/// What nothing may use: name and the beginning of the versions that are banned (empty: all).
const BANNED: &[(&str, &str)] = &[
    ("ring", ""),
    ("openssl-sys", ""),
    ("openssl", ""),
    ("native-tls", ""),
    ("rustls", "0.21."),
    ("rustls", "0.20."),
    ("hyper", "0.14."),
];

/// What the pure crate may not even say.
const IMPURE: &[&str] = &[
    "SystemTime",
    "Instant::now",
    "std::env",
    "std::fs",
    "std::net",
    "std::process",
    "std::thread",
    "HashMap",
    "HashSet",
    "async fn",
    ".await",
    "unsafe ",
];

/// Whether `name` is what `pattern` means; a `*` at its end stands for anything.
fn means(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == pattern,
    }
}

fn any_means(patterns: &[&str], name: &str) -> bool {
    patterns.iter().any(|pattern| means(pattern, name))
}

/// Arrows between our own crates that DESIGN does not draw, and crates it does not know.
fn broken_arrows(crates: &BTreeSet<String>, edges: &[Edge]) -> Vec<String> {
    let row = |name: &str| ARROWS.iter().find(|(pattern, _)| means(pattern, name));
    let unknown = crates
        .iter()
        .filter(|name| row(name).is_none())
        .map(|name| format!("{name} has no row in the table of arrows"));
    let broken = edges.iter().filter(|(_, to)| crates.contains(to)).filter_map(|(from, to)| {
        let (_, allowed) = row(from)?;
        (!any_means(allowed, to)).then(|| format!("{from} may not depend on {to}"))
    });
    unknown.chain(broken).collect()
}

/// Crates of others that are named by somebody who may not.
fn misplaced(edges: &[Edge]) -> Vec<String> {
    let broken = edges.iter().filter_map(|(from, to)| {
        let (_, owners) = OWNED.iter().find(|(pattern, _)| means(pattern, to))?;
        let of_the_family = OWNED
            .iter()
            .any(|(pattern, _)| pattern.ends_with('*') && means(pattern, from) && means(pattern, to));
        (!any_means(owners, from) && !of_the_family)
            .then(|| format!("{from} may not depend on {to}: only {} may", owners.join(", ")))
    });
    broken.collect()
}

/// What a crate reaches although it may not, with the way there.
fn reached(crates: &BTreeSet<String>, edges: &[Edge]) -> Vec<String> {
    let mut found = Vec::new();
    for (pattern, forbidden) in UNREACHABLE {
        for start in crates.iter().filter(|name| means(pattern, name)) {
            for (name, way) in ways_from(start, edges) {
                if any_means(forbidden, &name) {
                    found.push(format!("{start} may not reach {name}: {}", way.join(" → ")));
                }
            }
        }
    }
    found
}

fn ways_from(start: &str, edges: &[Edge]) -> BTreeMap<String, Vec<String>> {
    let mut next: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (from, to) in edges {
        next.entry(from).or_default().push(to);
    }
    let mut ways = BTreeMap::new();
    let mut open = vec![vec![start.to_owned()]];
    while let Some(way) = open.pop() {
        let here = way.last().expect("a way has a beginning").clone();
        for to in next.get(here.as_str()).into_iter().flatten() {
            if !ways.contains_key(*to) {
                let further: Vec<String> = way.iter().cloned().chain([(*to).to_owned()]).collect();
                ways.insert((*to).to_owned(), further.clone());
                open.push(further);
            }
        }
    }
    ways
}

/// Banned crates among `built`, which are names and versions.
fn banned(built: &BTreeSet<(String, String)>) -> Vec<String> {
    let is_banned = |name: &str, version: &str| {
        BANNED.iter().any(|(banned, beginning)| *banned == name && version.starts_with(beginning))
    };
    built
        .iter()
        .filter(|(name, version)| is_banned(name, version))
        .map(|(name, version)| format!("{name} {version} is banned"))
        .collect()
}

/// Words in pure source that are not pure.
fn impure_words(file: &str, source: &str) -> Vec<String> {
    let lines = source.lines().enumerate();
    let code = lines.filter(|(_, line)| !line.trim_start().starts_with("//"));
    code.flat_map(|(number, line)| {
        let said = IMPURE.iter().filter(move |word| line.contains(**word));
        said.map(move |word| format!("{file}:{} says `{word}`", number + 1))
    })
    .collect()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the tests lie in the repository")
}

fn cargo(arguments: &[&str]) -> Result<String> {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(program).args(arguments).current_dir(repository()).output().context("cargo")?;
    ensure!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Our crates by folder, and every edge of what is built for Linux.
struct Workspace {
    crates: BTreeSet<String>,
    edges: Vec<Edge>,
}

fn workspace() -> Result<Workspace> {
    let platform = ["--filter-platform", "x86_64-unknown-linux-gnu"];
    let metadata = cargo(&["metadata", "--format-version", "1", "--locked", platform[0], platform[1]])?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let root = metadata["workspace_root"].as_str().context("workspace_root")?;
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    let mut crates = BTreeSet::new();
    for package in list(&metadata["packages"])? {
        let id = package["id"].as_str().context("id")?;
        let ours = package["source"].is_null().then(|| package["manifest_path"].as_str()).flatten();
        let folder = ours.and_then(|path| Path::new(path).parent()?.strip_prefix(root).ok()?.to_str());
        match folder {
            Some(folder) => {
                crates.insert(folder.to_owned());
                names.insert(id, folder.to_owned());
            }
            None => {
                names.insert(id, package["name"].as_str().context("name")?.to_owned());
            }
        }
    }
    Ok(Workspace { crates, edges: edges(&metadata["resolve"]["nodes"], &names)? })
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().context("a list was expected in the metadata")
}

fn edges(nodes: &Value, names: &BTreeMap<&str, String>) -> Result<Vec<Edge>> {
    let name = |id: &Value| names.get(id.as_str()?).cloned();
    let mut edges = Vec::new();
    for node in list(nodes)? {
        for dependency in list(&node["deps"])? {
            let for_tests = list(&dependency["dep_kinds"])?.iter().all(|kind| kind["kind"] == "dev");
            if !for_tests {
                let (from, to) = (name(&node["id"]), name(&dependency["pkg"]));
                edges.push(from.zip(to).context("a package that is not listed")?);
            }
        }
    }
    Ok(edges)
}

fn built() -> Result<BTreeSet<(String, String)>> {
    let tree = cargo(&[
        "tree",
        "--workspace",
        "--locked",
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--edges",
        "normal,build,dev",
        "--target",
        "x86_64-unknown-linux-gnu",
    ])?;
    let lines = tree.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.trim_start_matches('v').to_owned()))
    });
    Ok(lines.collect())
}

fn edge(from: &str, to: &str) -> Edge {
    (from.to_owned(), to.to_owned())
}

fn crates(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_broken_arrow_is_reported_with_both_crates() {
    let ours =
        crates(&["domain", "core", "api", "backends/aws", "functions/ingest", "engines/qualify", "new"]);
    let edges = [
        edge("core", "domain"),
        edge("functions/ingest", "backends/aws"),
        edge("api", "backends/aws"),
        edge("engines/qualify", "domain"),
        edge("domain", "core"),
        edge("core", "serde"),
    ];
    assert_eq!(
        broken_arrows(&ours, &edges),
        [
            "new has no row in the table of arrows",
            "api may not depend on backends/aws",
            "engines/qualify may not depend on domain",
            "domain may not depend on core",
        ]
    );
}

#[test]
fn a_crate_in_the_wrong_hands_is_reported() {
    let edges = [
        edge("agent", "bollard"),
        edge("backends/aws", "aws-sdk-dynamodb"),
        edge("aws-sdk-sts", "aws-sdk-sso"),
        edge("manager", "bollard"),
        edge("core", "aws-sdk-s3"),
    ];
    assert_eq!(
        misplaced(&edges),
        [
            "manager may not depend on bollard: only agent may",
            "core may not depend on aws-sdk-s3: only backends/aws may",
        ]
    );
}

#[test]
fn a_way_to_what_may_not_be_reached_is_shown() {
    let edges = [
        edge("domain", "harmless"),
        edge("harmless", "tokio"),
        edge("core", "tokio"),
        edge("tokio", "harmless"),
    ];
    assert_eq!(
        reached(&crates(&["domain", "core"]), &edges),
        ["domain may not reach tokio: domain → harmless → tokio"]
    );
}

#[test]
fn banned_crates_are_reported_with_their_version() {
    let built = [("ring", "0.17.14"), ("rustls", "0.21.12"), ("rustls", "0.23.46"), ("ringbuf", "1.0.0")];
    let built = built.map(|(name, version)| (name.to_owned(), version.to_owned())).into();
    assert_eq!(banned(&built), ["ring 0.17.14 is banned", "rustls 0.21.12 is banned"]);
}

#[test]
fn impure_words_are_reported_with_their_line() {
    let source = "//! Never `SystemTime`.\nuse std::collections::HashMap;\nlet now = Instant::now();\n";
    assert_eq!(impure_words("a.rs", source), ["a.rs:2 says `HashMap`", "a.rs:3 says `Instant::now`"]);
}

#[test]
fn the_arrows_of_this_repository_hold() -> Result<()> {
    let workspace = workspace()?;
    ensure!(
        workspace.crates.contains("domain") && workspace.edges.len() > 100,
        "the metadata was not understood"
    );
    let mut broken = broken_arrows(&workspace.crates, &workspace.edges);
    broken.extend(misplaced(&workspace.edges));
    broken.extend(reached(&workspace.crates, &workspace.edges));
    assert_eq!(broken, Vec::<String>::new());
    Ok(())
}

#[test]
fn nothing_banned_is_built() -> Result<()> {
    let built = built()?;
    ensure!(built.iter().any(|(name, _)| name == "tokio"), "the tree was not understood");
    assert_eq!(banned(&built), Vec::<String>::new());
    Ok(())
}

#[test]
fn the_domain_says_nothing_impure() -> Result<()> {
    let mut folders = vec![repository().join("domain/src")];
    let (mut said, mut files) = (Vec::new(), 0);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files += 1;
                said.extend(impure_words(&path.display().to_string(), &std::fs::read_to_string(&path)?));
            }
        }
    }
    ensure!(files > 10, "the source was not found");
    assert_eq!(said, Vec::<String>::new());
    Ok(())
}
