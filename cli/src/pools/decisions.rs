//! `telecine pools decisions`: what the autoscaler did and why, newest first, and the same decision taken again.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use telecine_api::page::Listed;
use telecine_api::view::scaling::{Decision, DecisionAction, DecisionReason, Replay};

use crate::client::{Call, Client};
use crate::failure::{Exit, Failure};
use crate::output::{self, Format, time};
use crate::pages;

/// Time between two looks of `--follow`.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Instances that are left alone and named in one decision; of more only the number is told.
const NAMED: usize = 4;

/// Arguments of `pools decisions`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  telecine pools decisions\n  telecine pools decisions --region local -n 5 -o json\n  telecine pools decisions --follow\n  telecine pools decisions replay 17"
)]
pub(crate) struct Arguments {
    /// Something else than a list
    #[command(subcommand)]
    command: Option<Command>,
    /// Only those of this region
    #[arg(long)]
    region: Option<String>,
    /// Most decisions
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=200))]
    limit: u64,
    /// Go on where a list before ended (its `next_cursor`)
    #[arg(long)]
    cursor: Option<String>,
    /// Go on with each new decision, the oldest first, until interrupted
    #[arg(long, conflicts_with = "cursor")]
    follow: bool,
}

/// What can be done with decisions besides listing them.
#[derive(Debug, Subcommand)]
enum Command {
    /// Take a decision again, on what it was taken on, and say whether it is the same
    #[command(
        after_help = "Examples:\n  telecine pools decisions replay 17\n  telecine pools decisions replay 17 --region north"
    )]
    Replay {
        /// Its number
        number: u64,
        /// Its region; the default one unless given
        #[arg(long)]
        region: Option<String>,
    },
}

/// Does it.
///
/// # Errors
/// Why it was not done; that a decision is another one now.
pub(crate) async fn run(client: &Client, format: Format, arguments: Arguments) -> Result<(), Failure> {
    if let Some(Command::Replay { number, region }) = arguments.command {
        return replay(client, format, number, region).await;
    }
    if arguments.follow {
        return follow(client, format, &arguments).await;
    }
    let page = page(client, &arguments).await?;
    format.print(&page, |page| pages::table(page, table(&page.data)))
}

async fn page(client: &Client, arguments: &Arguments) -> Result<Listed<Decision>, Failure> {
    let call = Call::new(Method::GET, &["pools", "decisions"])
        .query("region", arguments.region.as_ref())
        .query("limit", Some(arguments.limit))
        .query("cursor", arguments.cursor.as_ref());
    client.get(call).await
}

/// Prints what is there, then what comes, each once: as rows, or as JSON, one decision after the other.
async fn follow(client: &Client, format: Format, arguments: &Arguments) -> Result<(), Failure> {
    let mut known = BTreeSet::new();
    loop {
        let mut new = page(client, arguments).await?.data;
        new.retain(|decision| known.insert((decision.region.clone(), decision.number)));
        new.reverse();
        match format {
            Format::Json => new.iter().try_for_each(|decision| format.print(decision, |_| String::new()))?,
            Format::Table if new.is_empty() => {}
            Format::Table => output::line(&table(&new))?,
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn replay(client: &Client, format: Format, number: u64, region: Option<String>) -> Result<(), Failure> {
    let call = Call::new(Method::GET, &["pools", "decisions", &number.to_string(), "replay"]);
    let replay: Replay = client.get(call.query("region", region)).await?;
    format.print(&replay, replayed)?;
    if replay.same {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, format!("decision {number} is another one with this version")))
    }
}

fn replayed(replay: &Replay) -> String {
    let recorded = table(std::slice::from_ref(&replay.recorded));
    if replay.same {
        return format!("{recorded}\nThe same snapshot and policy give the same decision.");
    }
    format!("Recorded:\n{recorded}\nNow:\n{}", table(std::slice::from_ref(&replay.again)))
}

fn table(decisions: &[Decision]) -> String {
    output::rows(["TIME", "REGION", "NUMBER", "ACTION", "WHAT", "REASON"], decisions.iter().flat_map(rows))
}

/// A row for each action and for each thing that was left.
fn rows(decision: &Decision) -> Vec<[String; 6]> {
    let row = |action: &str, what: String, reason: &str| {
        let number = decision.number.to_string();
        [time(decision.at), decision.region.clone(), number, action.to_owned(), what, reason.to_owned()]
    };
    let mut rows: Vec<_> =
        decision.actions.iter().map(|action| row(&action.action, what(action), &action.reason)).collect();
    let (kept, others): (Vec<&DecisionReason>, Vec<&DecisionReason>) =
        decision.reasons.iter().partition(|reason| reason.code == "kept");
    for reason in others.iter().chain(kept.iter().take(NAMED)) {
        rows.push(row("-", subject(reason), &reason.reason));
    }
    if kept.len() > NAMED {
        let more = format!("{} more instances stay; -o json tells why each", kept.len() - NAMED);
        rows.push(row("-", String::new(), &more));
    }
    if rows.is_empty() {
        rows.push(row("-", String::new(), "nothing to do"));
    }
    rows
}

fn what(action: &DecisionAction) -> String {
    let launched = action.pool.as_ref().map(|pool| format!("{} of {pool}", action.count.unwrap_or(0)));
    let instance = action.instance_id.map(|instance| instance.to_string());
    launched.or(instance).unwrap_or_default()
}

fn subject(reason: &DecisionReason) -> String {
    reason.pool.clone().or_else(|| Some(reason.instance_id?.to_string())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn decision(actions: &serde_json::Value, reasons: &serde_json::Value) -> Decision {
        let decision = json!({
            "region": "local", "number": 7, "at": "2026-11-22T15:04:05Z", "actions": actions,
            "reasons": reasons, "input_sha256": "ab",
        });
        serde_json::from_value(decision).unwrap()
    }

    #[test]
    fn a_decision_is_a_row_for_each_thing_done_or_left() {
        let instance = "ins_01k00000000000000000000000";
        let kept = json!({"code": "kept", "instance_id": instance, "reason": "it stays"});
        let first = decision(
            &json!([
                {"action": "launch", "pool": "small", "count": 2, "code": "demand", "reason": "for 2 jobs"},
                {"action": "cordon", "instance_id": instance, "cordon": 1, "code": "idle", "reason": "idle for 1 s"},
            ]),
            &json!([kept, kept, kept, kept, kept, kept, {"code": "expected", "reason": "3 jobs"}]),
        );
        let text = table(&[first, decision(&json!([]), &json!([]))]);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["TIME", "REGION", "NUMBER", "ACTION", "WHAT", "REASON"]);
        assert_eq!(lines[1][4..], ["launch", "2", "of", "small", "for", "2", "jobs"]);
        assert_eq!(lines[2][4..6], ["cordon", instance]);
        assert_eq!(lines[3][4..], ["-", "3", "jobs"], "what concerns jobs comes before what stays");
        assert_eq!(lines.len(), 1 + 2 + 1 + NAMED + 1 + 1);
        assert!(text.contains("2 more instances stay") && text.contains("nothing to do"), "{text}");
    }
}
