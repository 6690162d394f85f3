//! The commands against a scripted node.

use std::collections::VecDeque;

use super::*;
use crate::cli::{JoinArgs, RemoveArgs, TransferArgs};

struct Script {
    answers: VecDeque<(&'static str, Answer)>,
    asked: Vec<String>,
    pauses_left: usize,
}

impl Script {
    fn new(answers: &[(&'static str, u16, Value)]) -> Self {
        let answers = answers
            .iter()
            .map(|(path, status, body)| (*path, Answer { status: *status, body: body.clone() }));
        Self { answers: answers.collect(), asked: Vec::new(), pauses_left: 2 }
    }

    fn take(&mut self, path: &str, body: String) -> Result<Answer, Failure> {
        self.asked.push(format!("{path}{body}"));
        let (expected, answer) =
            self.answers.pop_front().unwrap_or_else(|| panic!("asked too often: {:?}", self.asked));
        assert_eq!(path, expected);
        Ok(answer)
    }
}

impl Admin for Script {
    fn get(&mut self, path: &str) -> Result<Answer, Failure> {
        self.take(path, String::new())
    }

    fn post(&mut self, path: &str, body: &Value) -> Result<Answer, Failure> {
        self.take(path, format!(" {body}"))
    }

    fn pause(&mut self, _: Duration) -> bool {
        self.pauses_left = self.pauses_left.saturating_sub(1);
        self.pauses_left > 0
    }
}

fn admin(json: bool) -> AdminArgs {
    AdminArgs { admin: "127.0.0.1:9094".into(), json, timeout_s: 1 }
}

fn run(command: &ClusterCommand, node: &mut Script) -> Result<String, Failure> {
    let mut out = Vec::new();
    command.run_with(node, &mut out)?;
    Ok(String::from_utf8(out).unwrap())
}

fn cluster() -> Value {
    json!({
        "cluster_id": "abc", "revision": 12, "leader": 1, "term": 3, "topics": 2, "partitions": 8, "ready": true, "new": 1,
        "nodes": [
            {"id": 1, "host": "n1", "port": 9092, "rack": "a", "fenced": false},
            {"id": 2, "host": "n2", "port": 9092, "rack": null, "fenced": true},
            {"id": 3, "host": "n3", "port": 9092, "fenced": false},
        ],
        "members": [
            {"id": 1, "address": "n1:9093", "votes": true, "behind": 0, "silent_ms": 0},
            {"id": 2, "address": "n2:9093", "votes": true, "behind": 7, "silent_ms": 20},
            {"id": 3, "address": "n3:9093", "votes": true, "behind": 700, "silent_ms": 31_000},
            {"id": 4, "address": "n4:9093", "votes": false},
        ],
    })
}

#[test]
fn the_status_is_a_table_of_all_nodes() {
    let text = run(&ClusterCommand::Status(admin(false)), &mut Script::new(&[("/cluster", 200, cluster())]))
        .unwrap();
    assert_eq!(
        text,
        "cluster abc: node 1 leads the metadata in term 3, revision 12; 2 topics, 8 partitions\n\
         NODE  CLIENTS  PEERS    RACK  VOTES  BEHIND  STATE\n   \
         1  n1:9092  n1:9093  a     yes         0  leader\n   \
         2  n2:9092  n2:9093  -     yes         7  fenced\n   \
         3  n3:9092  n3:9093  -     yes       700  silent for 31 s\n   \
         4  -        n4:9093  -     no          -  not registered\n"
    );
    let json =
        run(&ClusterCommand::Status(admin(true)), &mut Script::new(&[("/cluster", 200, cluster())])).unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&json).unwrap(),
        cluster(),
        "with fields that this version does not know"
    );
    let waiting = json!({ "forming": "1 of 3 seeds is there\u{1b}[2J", "ready": false });
    let text =
        run(&ClusterCommand::Status(admin(false)), &mut Script::new(&[("/cluster", 200, waiting)])).unwrap();
    assert_eq!(text, "in no cluster yet: 1 of 3 seeds is there?[2J\n");
}

#[test]
fn a_node_that_cannot_tell_is_a_failure() {
    let command = ClusterCommand::Status(admin(false));
    let failure =
        run(&command, &mut Script::new(&[("/cluster", 503, "the node is stopping\n".into())])).unwrap_err();
    assert_eq!((failure.status, &*failure.message), (ExitStatus::Refused, "the node is stopping"));
    let failure = run(&command, &mut Script::new(&[("/cluster", 200, "<html>".into())])).unwrap_err();
    assert_eq!(failure.status, ExitStatus::Unreachable);
}

#[test]
fn changes_are_asked_for_again_while_they_may_work_later() {
    let not_now = json!({"error": "there is no leader", "try_again": true});
    let to = |to| ClusterCommand::TransferLeader(TransferArgs { to, admin: admin(false) });
    let path = "/cluster/transfer-leader";
    let mut node = Script::new(&[(path, 503, not_now.clone()), (path, 200, json!({"done": "node 2 leads"}))]);
    assert_eq!(run(&to(Some(2)), &mut node).unwrap(), "node 2 leads\n");
    assert_eq!(node.asked, [format!("{path} {{\"to\":2}}"), format!("{path} {{\"to\":2}}")]);
    let mut node = Script::new(&[(path, 503, not_now.clone()), (path, 503, not_now)]);
    assert_eq!(run(&to(None), &mut node).unwrap_err().message, "there is no leader");
    let refused = json!({"error": "node 9 is not in the cluster", "try_again": false});
    let failure = run(&to(Some(9)), &mut Script::new(&[(path, 409, refused)])).unwrap_err();
    assert_eq!((failure.status, &*failure.message), (ExitStatus::Refused, "node 9 is not in the cluster"));
    let join = ClusterCommand::Join(JoinArgs { through: "n1:9093".into(), admin: admin(true) });
    let mut node = Script::new(&[("/cluster/join", 200, json!({"done": "joining"}))]);
    assert_eq!(
        serde_json::from_str::<Value>(&run(&join, &mut node).unwrap()).unwrap(),
        json!({"done": "joining"})
    );
    assert_eq!(node.asked, ["/cluster/join {\"through\":\"n1:9093\"}"]);
}

#[test]
fn a_removal_is_through_when_the_node_is_gone() {
    let remove = |node| ClusterCommand::Remove(RemoveArgs { node, force: node == 1, admin: admin(false) });
    let path = "/cluster/remove";
    let begun = json!({"done": "it has lost its vote"});
    let mut gone = cluster();
    gone["nodes"].as_array_mut().unwrap().remove(2);
    gone["members"].as_array_mut().unwrap().remove(2);
    let still = ("/cluster", 200, cluster());
    let steps =
        [(path, 200, begun.clone()), still.clone(), (path, 200, begun.clone()), ("/cluster", 200, gone)];
    assert_eq!(run(&remove(3), &mut Script::new(&steps)).unwrap(), "node 3 is out of the cluster\n");
    let steps = [(path, 200, begun.clone()), still.clone(), (path, 200, begun), still];
    let failure = run(&remove(3), &mut Script::new(&steps)).unwrap_err();
    let mut forced = Script::new(&[(path, 409, json!({"error": "node 1 is running"}))]);
    assert_eq!(run(&remove(1), &mut forced).unwrap_err().message, "node 1 is running");
    assert_eq!(forced.asked, ["/cluster/remove {\"force\":true,\"node\":1}"]);
    assert!(failure.message.contains("still in the cluster (it has lost its vote)"), "{failure}");
}
