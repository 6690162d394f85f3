//! `highwater cluster status|join|remove|transfer-leader` and `highwater members`, over the admin HTTP of a running node,
//! and `highwater dev cluster`.
//!
//! A driver on the main thread of a process without shards.

mod client;
mod dev;
mod members;
mod status;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::{AdminArgs, ClusterCommand, RemoveArgs};
use crate::error::{ExitStatus, Failure};
use client::{Answer, Client};
use status::Status;

/// Between two looks at whether a change is through.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// What the commands need of a node; a test puts a scripted one in its place.
trait Admin {
    fn get(&mut self, path: &str) -> Result<Answer, Failure>;
    fn post(&mut self, path: &str, body: &Value) -> Result<Answer, Failure>;
    /// Waits; false when the command's time is over.
    fn pause(&mut self, time: Duration) -> bool;
}

impl ClusterCommand {
    /// Carries the command out against the node that it names; `out` is standard output.
    pub fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let admin = self.admin();
        let mut client = Client::new(&admin.admin, Duration::from_secs(admin.timeout_s.into()))?;
        self.run_with(&mut client, out)
    }

    fn run_with(&self, node: &mut dyn Admin, out: &mut dyn Write) -> Result<(), Failure> {
        match self {
            Self::Status(args) => status(node, args, out),
            Self::Join(args) => {
                let done = change(node, "/cluster/join", &json!({ "through": args.through }))?;
                report(out, &args.admin, &done)
            }
            Self::Remove(args) => remove(node, args, out),
            Self::TransferLeader(args) => {
                let body = args.to.map_or_else(|| json!({}), |to| json!({ "to": to }));
                let done = change(node, "/cluster/transfer-leader", &body)?;
                report(out, &args.admin, &done)
            }
        }
    }
}

fn status(node: &mut dyn Admin, args: &AdminArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let (value, status) = look(node)?;
    match args.json {
        true => print(out, &format!("{value:#}\n")),
        false => print(out, &status.render()),
    }
}

fn look(node: &mut dyn Admin) -> Result<(Value, Status), Failure> {
    let Answer { status, body } = node.get("/cluster")?;
    if status != 200 {
        return Err(Failure::new(ExitStatus::Refused, words(status, &body)));
    }
    let status = serde_json::from_value(body.clone()).map_err(|e| {
        Failure::new(ExitStatus::Unreachable, format!("what answered is no node of this version: {e}"))
    })?;
    Ok((body, status))
}

/// Asks for a change until the node does it, refuses it for good, or the time is over.
fn change(node: &mut dyn Admin, path: &str, body: &Value) -> Result<String, Failure> {
    loop {
        let answer = node.post(path, body)?;
        if answer.status == 200 {
            return Ok(answer.body["done"].as_str().unwrap_or("done").to_owned());
        }
        let try_again = answer.body["try_again"].as_bool().unwrap_or(false);
        if !try_again || !node.pause(LOOK_AGAIN) {
            return Err(Failure::new(ExitStatus::Refused, words(answer.status, &answer.body)));
        }
    }
}

/// A removal takes several steps, and a new leader has to be asked anew: so this asks until the node is gone.
fn remove(node: &mut dyn Admin, args: &RemoveArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let RemoveArgs { node: id, force, admin } = args;
    let id = *id;
    let body = json!({ "node": id, "force": force });
    let mut done = change(node, "/cluster/remove", &body)?;
    loop {
        let (_, status) = look(node)?;
        if !status.is_member(id) {
            return report(out, admin, &format!("node {id} is out of the cluster"));
        }
        if !node.pause(LOOK_AGAIN) {
            let why = format!(
                "node {id} is still in the cluster ({done}); it goes on, see `highwater cluster status`"
            );
            return Err(Failure::new(ExitStatus::Refused, why));
        }
        done = match change(node, "/cluster/remove", &body) {
            Ok(done) => done,
            // It went between the look and the wish.
            Err(_) if !look(node)?.1.is_member(id) => {
                return report(out, admin, &format!("node {id} is out of the cluster"));
            }
            Err(failure) => return Err(failure),
        };
    }
}

fn words(status: u16, body: &Value) -> String {
    let said = body["error"].as_str().or(body.as_str()).map(str::trim).filter(|said| !said.is_empty());
    match said {
        Some(said) => crate::topic_commands::table::printable(said),
        None => format!("the node answered with status {status}"),
    }
}

fn report(out: &mut dyn Write, args: &AdminArgs, done: &str) -> Result<(), Failure> {
    match args.json {
        true => print(out, &format!("{:#}\n", json!({ "done": done }))),
        false => print(out, &format!("{}\n", crate::topic_commands::table::printable(done))),
    }
}

/// Prints to standard output. Nobody reading the rest (`| head`) is no failure.
fn print(out: &mut dyn Write, text: &str) -> Result<(), Failure> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::new(ExitStatus::Environment, format!("standard output cannot be written: {e}")))
        }
        _ => Ok(()),
    }
}
