//! What `GET /cluster` says of a cluster, as a table. Pure.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::topic_commands::table::{Align, Table, printable};

/// A member is called silent from here on.
const SILENT_MS: u64 = 3_000;

/// The fields that are shown; others are left out, so that nodes of other versions can be asked.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    cluster_id: String,
    revision: u64,
    leader: Option<u32>,
    term: Option<u64>,
    topics: u64,
    partitions: u64,
    ready: bool,
    /// While the node is in no cluster: what it waits for.
    forming: Option<String>,
    nodes: Vec<Node>,
    members: Vec<Member>,
}

/// A node that registered.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Node {
    id: u32,
    host: String,
    port: u16,
    rack: Option<String>,
    fenced: bool,
}

/// A node that has the metadata log.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Member {
    id: u32,
    address: String,
    votes: bool,
    /// Known to the leader alone, as is the time since it was heard.
    behind: Option<u64>,
    silent_ms: Option<u64>,
}

impl Status {
    pub(super) fn is_member(&self, id: u32) -> bool {
        self.members.iter().any(|member| member.id == id) || self.nodes.iter().any(|node| node.id == id)
    }

    pub(super) fn render(&self) -> String {
        if let Some(waits_for) = &self.forming {
            return format!("in no cluster yet: {}\n", printable(waits_for));
        }
        let leader = match self.leader {
            Some(leader) => format!("node {leader} leads the metadata"),
            None => "no leader of the metadata is known".into(),
        };
        let term = self.term.map_or_else(String::new, |term| format!(" in term {term}"));
        let mut out = format!(
            "cluster {}: {leader}{term}, revision {}; {} topics, {} partitions{}\n",
            printable(&self.cluster_id),
            self.revision,
            self.topics,
            self.partitions,
            if self.ready { "" } else { "; the node that was asked is not ready" }
        );
        let mut table = Table::new(&[
            ("NODE", Align::Right),
            ("CLIENTS", Align::Left),
            ("PEERS", Align::Left),
            ("RACK", Align::Left),
            ("VOTES", Align::Left),
            ("BEHIND", Align::Right),
            ("STATE", Align::Left),
        ]);
        let ids: BTreeSet<u32> = self
            .nodes
            .iter()
            .map(|node| node.id)
            .chain(self.members.iter().map(|member| member.id))
            .collect();
        for id in ids {
            let node = self.nodes.iter().find(|node| node.id == id);
            let member = self.members.iter().find(|member| member.id == id);
            let dash = || "-".to_owned();
            table.row([
                id.to_string(),
                node.map_or_else(dash, |node| format!("{}:{}", printable(&node.host), node.port)),
                member.map_or_else(dash, |member| printable(&member.address)),
                node.and_then(|node| node.rack.as_deref()).map_or_else(dash, printable),
                member.map_or_else(dash, |member| if member.votes { "yes" } else { "no" }.to_owned()),
                member.and_then(|member| member.behind).map_or_else(dash, |behind| behind.to_string()),
                self.state(id, node, member),
            ]);
        }
        out.push_str(&table.render(""));
        out
    }

    fn state(&self, id: u32, node: Option<&Node>, member: Option<&Member>) -> String {
        let silent = member.and_then(|member| member.silent_ms).filter(|silent| *silent >= SILENT_MS);
        match (node, silent) {
            _ if self.leader == Some(id) => "leader".into(),
            (_, Some(silent)) => format!("silent for {} s", silent / 1000),
            (None, None) => "not registered".into(),
            (Some(node), None) if node.fenced => "fenced".into(),
            (Some(_), None) => "up".into(),
        }
    }
}
