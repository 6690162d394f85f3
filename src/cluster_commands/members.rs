//! `highwater members`: who is alive as one node sees it, and the keys under which it gossips.
//!
//! A driver on the main thread of a process without shards.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::client::{Answer, Client};
use super::{Admin, change, print, report, words};
use crate::cli::{AdminArgs, KeysCommand, MembersArgs, MembersCommand};
use crate::config::Secret;
use crate::error::{ExitStatus, Failure};
use crate::topic_commands::table::{Align, Table, printable};

impl MembersArgs {
    /// Carries the command out against the node that it names; `out` is standard output.
    pub fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
        let admin = self.node();
        let mut client = Client::new(&admin.admin, Duration::from_secs(admin.timeout_s.into()))?;
        self.run_with(&mut client, out)
    }

    fn node(&self) -> &AdminArgs {
        match &self.command {
            None => &self.admin,
            Some(MembersCommand::Keys(KeysCommand::List(admin))) => admin,
            Some(MembersCommand::Keys(KeysCommand::Install(args))) => &args.admin,
            Some(MembersCommand::Keys(KeysCommand::Use(args) | KeysCommand::Remove(args))) => &args.admin,
        }
    }

    fn run_with(&self, node: &mut dyn Admin, out: &mut dyn Write) -> Result<(), Failure> {
        let admin = self.node();
        let Some(MembersCommand::Keys(keys)) = &self.command else {
            let (value, members) = look(node)?;
            return match admin.json {
                true => print(out, &format!("{value:#}\n")),
                false => print(out, &members.render()),
            };
        };
        let done = match keys {
            KeysCommand::List(_) => {
                let (value, members) = look(node)?;
                return match admin.json {
                    true => print(out, &format!("{:#}\n", value["keys"])),
                    false => print(out, &members.render_keys()),
                };
            }
            KeysCommand::Install(args) => install(node, &args.secret_file)?,
            KeysCommand::Use(args) => change(node, "/members/keys/use", &json!({ "key": args.key }))?,
            KeysCommand::Remove(args) => change(node, "/members/keys/remove", &json!({ "key": args.key }))?,
        };
        report(out, admin, &done)
    }
}

fn install(node: &mut dyn Admin, file: &Path) -> Result<String, Failure> {
    let usage = |why: String| Failure::new(ExitStatus::Usage, why);
    let secret = Secret::read(file).map_err(usage)?;
    let text = std::str::from_utf8(secret.bytes());
    let text = text.map_err(|_| usage(format!("{} must hold text, such as base64", file.display())))?;
    // The JSON text is wiped when it was sent; what the transport copied of it is not in this process's power.
    let text = Zeroizing::new(text.to_owned());
    change(node, "/members/keys/install", &json!({ "secret": *text }))
}

fn look(node: &mut dyn Admin) -> Result<(serde_json::Value, Members), Failure> {
    let Answer { status, body } = node.get("/members")?;
    if status != 200 {
        return Err(Failure::new(ExitStatus::Refused, words(status, &body)));
    }
    let members = serde_json::from_value(body.clone()).map_err(|e| {
        Failure::new(ExitStatus::Unreachable, format!("what answered is no node of this version: {e}"))
    })?;
    Ok((body, members))
}

/// The fields that are shown; others are left out, so that nodes of other versions can be asked.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Members {
    members: Vec<Member>,
    keys: Vec<Key>,
    local_health: u32,
    /// Why there are no members.
    waits_for: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Member {
    name: String,
    address: String,
    status: String,
    life: u64,
    version: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Key {
    key: u8,
    in_use: bool,
    received: u64,
}

impl Members {
    fn render(&self) -> String {
        if let Some(why) = &self.waits_for {
            return format!("no members: {}\n", printable(why));
        }
        let mut table = Table::new(&[
            ("NODE", Align::Right),
            ("GOSSIP", Align::Left),
            ("STATUS", Align::Left),
            ("LIFE", Align::Right),
            ("VERSION", Align::Left),
        ]);
        let mut members: Vec<&Member> = self.members.iter().collect();
        members.sort_by_key(|member| (member.name.parse::<u32>().unwrap_or(u32::MAX), &member.name));
        for member in members {
            table.row([
                printable(&member.name),
                printable(&member.address),
                printable(&member.status),
                member.life.to_string(),
                printable(&member.version),
            ]);
        }
        let mut out = table.render("");
        if self.local_health > 0 {
            out += &format!(
                "the node that was asked doubts itself ({} of 8): it was slow, or probes of it were lost\n",
                self.local_health
            );
        }
        out
    }

    fn render_keys(&self) -> String {
        if let Some(why) = &self.waits_for {
            return format!("no keys: {}\n", printable(why));
        }
        let mut table =
            Table::new(&[("KEY", Align::Right), ("IN USE", Align::Left), ("RECEIVED", Align::Right)]);
        for key in &self.keys {
            let in_use = if key.in_use { "yes" } else { "no" };
            table.row([key.key.to_string(), in_use.to_owned(), key.received.to_string()]);
        }
        table.render("")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::cli::{InstallArgs, KeyArgs};

    /// A node that answers everything, and what it was asked.
    struct Node {
        asked: Vec<String>,
        answer: Value,
    }

    impl Admin for Node {
        fn get(&mut self, path: &str) -> Result<Answer, Failure> {
            self.asked.push(path.to_owned());
            Ok(Answer { status: 200, body: self.answer.clone() })
        }

        fn post(&mut self, path: &str, body: &Value) -> Result<Answer, Failure> {
            self.asked.push(format!("{path} {body}"));
            Ok(Answer { status: 200, body: json!({ "done": "so be it" }) })
        }

        fn pause(&mut self, _: Duration) -> bool {
            false
        }
    }

    fn run(command: Option<KeysCommand>, json: bool) -> (String, Vec<String>) {
        let admin = AdminArgs { admin: "127.0.0.1:9094".into(), json, timeout_s: 1 };
        let args = MembersArgs { admin, command: command.map(MembersCommand::Keys) };
        let answer = json!({
            "members": [
                {"name": "10", "address": "10.0.0.10:9093", "status": "dead", "life": 3, "version": "0.1.0", "new": 1},
                {"name": "2", "address": "10.0.0.2:9093", "status": "alive", "life": 1, "version": "0.1.0"},
            ],
            "keys": [{"key": 17, "in_use": true, "received": 90}, {"key": 4, "in_use": false, "received": 2}],
            "local_health": 0,
        });
        let mut node = Node { asked: Vec::new(), answer };
        let mut out = Vec::new();
        args.run_with(&mut node, &mut out).unwrap();
        (String::from_utf8(out).unwrap(), node.asked)
    }

    fn admin() -> AdminArgs {
        AdminArgs { admin: "127.0.0.1:9094".into(), json: false, timeout_s: 1 }
    }

    #[test]
    fn members_come_in_the_order_of_their_numbers() {
        let (text, asked) = run(None, false);
        assert_eq!(asked, ["/members"]);
        let want = "NODE  GOSSIP          STATUS  LIFE  VERSION\n   2  10.0.0.2:9093   alive      1  0.1.0\n  10  \
                    10.0.0.10:9093  dead       3  0.1.0\n";
        assert_eq!(text, want);
        let (text, _) = run(None, true);
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["members"][0]["new"], 1);
    }

    #[test]
    fn keys_are_listed_installed_used_and_removed() {
        let (text, _) = run(Some(KeysCommand::List(admin())), false);
        assert_eq!(text, "KEY  IN USE  RECEIVED\n 17  yes           90\n  4  no             2\n");
        let (text, asked) = run(Some(KeysCommand::Use(KeyArgs { key: 4, admin: admin() })), false);
        assert_eq!(
            (text.as_str(), &*asked),
            ("so be it\n", &[r#"/members/keys/use {"key":4}"#.to_owned()][..])
        );
        let (_, asked) = run(Some(KeysCommand::Remove(KeyArgs { key: 17, admin: admin() })), false);
        assert_eq!(asked, [r#"/members/keys/remove {"key":17}"#]);
        let file = std::env::temp_dir().join(format!("highwater-key-{}", std::process::id()));
        std::fs::write(&file, "0123456789abcdef\n").unwrap();
        let install = InstallArgs { secret_file: file.clone(), admin: admin() };
        let (text, asked) = run(Some(KeysCommand::Install(install)), false);
        std::fs::remove_file(&file).unwrap();
        assert_eq!(text, "so be it\n");
        assert_eq!(asked, [r#"/members/keys/install {"secret":"0123456789abcdef"}"#]);
    }
}
