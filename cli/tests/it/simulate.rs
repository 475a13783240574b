//! `telecine simulate`: a table, JSON, a picture, broken files, and the protocol of foreign simulators.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;

use crate::server::{Ran, telecine};

async fn run(arguments: &[&str]) -> Ran {
    telecine(arguments).output().await.unwrap().into()
}

fn file(folder: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const TRACE: &str =
    "arrival_s,cpu_milli,mem_mib,gpu_milli,duration_s\n0,4000,4000,0,300\n60,2000,1000,0,600\n";
const POOLS: &str = "[[pool]]\nname = \"small\"\ncpu = 4\nmemory_gib = 8\nprice_per_hour = 0.17\n";

#[tokio::test]
async fn a_workload_is_simulated_and_compared() {
    let folder = tempfile::tempdir().unwrap();
    let (trace, pools) = (file(&folder, "jobs.csv", TRACE), file(&folder, "pools.toml", POOLS));
    let policy = file(&folder, "policy.toml", "[caps]\ninstances = 1\n");
    let svg = folder.path().join("run.svg");
    let svg = svg.to_str().unwrap();
    let common = ["simulate", "--trace", &trace, "--pools", &pools, "--policy", &policy];
    let ran = run(&[&common[..], &["--compare", "karpenter,calm", "--svg", svg]].concat()).await.expect(0);
    assert!(ran.out.starts_with("2 jobs; nobody can pay less than $"), "{}", ran.out);
    assert!(ran.out.contains("karpenter") && ran.out.contains("LAUNCHES"), "{}", ran.out);
    let picture = std::fs::read_to_string(svg).unwrap();
    assert_eq!(picture.matches("<polyline").count(), 12);
    let json = run(&[&common[..], &["-o", "json"]].concat()).await.expect(0).json();
    assert_eq!(json["jobs"], 2);
    assert_eq!(json["policies"][0]["launches"], 1);
    assert!(json["policies"][0]["over_bound"].as_f64().unwrap() > 1.0);
}

#[tokio::test]
async fn broken_files_are_named_with_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let trace = file(&folder, "jobs.csv", "0,4000,4000,0,300\n60,many,1000,0,600\n");
    let error = run(&["simulate", "--trace", &trace]).await.expect(2).err;
    assert!(error.contains("jobs.csv: line 2, cpu_milli: `many`"), "{error}");
    let policy = file(&folder, "policy.toml", "[marks]\nlow = 900\nmiddle = 100\n");
    let error = run(&["simulate", "--trace", "media:1:1:5", "--policy", &policy]).await.expect(2).err;
    assert!(error.contains("marks must be low <= middle <= high"), "{error}");
    let unknown = file(&folder, "unknown.toml", "cap = 3\n");
    let error = run(&["simulate", "--trace", "media:1:1:5", "--policy", &unknown]).await.expect(2).err;
    assert!(error.contains("unknown field `cap`"), "{error}");
    let pools = file(&folder, "pools.toml", &POOLS.replace("0.17", "0"));
    let error = run(&["simulate", "--trace", "media:1:1:5", "--pools", &pools]).await.expect(2).err;
    assert!(error.contains("pool `small`: price_per_hour"), "{error}");
    run(&["simulate", "--trace", "media:1:1:5", "--compare", "nobody"]).await.expect(2);
    run(&["simulate"]).await.expect(2);
}

#[tokio::test]
async fn a_foreign_simulator_is_answered() {
    let mut child = telecine(&["simulate", "--serve"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let said =
        "type 0 c6i.xlarge 4000 7782 0 0.000047 0.000018 0\ngo\ntick 5\njob 0 0 4000 6000 0 300 180\nend\n";
    stdin.write_all(said.as_bytes()).await.unwrap();
    drop(stdin);
    let ran = Ran::from(child.wait_with_output().await.unwrap()).expect(0);
    assert_eq!(ran.out, "launch 0 od 1\nend\n");
}
