//! Starts that must fail: each ends at once with a message that says what to do.

use std::fs;
use std::net::TcpListener;

use crate::node::Home;

/// Exit statuses, as `highwater --help` lists them.
const REFUSED: i32 = 1;
const ENVIRONMENT: i32 = 3;

/// Starts a node that must refuse with an exit status, and checks that it says each of `words`.
fn refused(home: &Home, code: i32, words: &[&str]) {
    let (status, said) = home.start_refused();
    assert_eq!(status.code(), Some(code), "{status}; it said:\n{said}");
    assert!(!said.contains("panicked"), "a refusal is not a panic:\n{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is missing from:\n{said}");
    }
}

#[test]
fn a_second_node_on_the_same_data_is_refused() {
    let home = Home::new("twice").small_journal();
    let mut first = home.start();
    let mut second = Home::new("twice-too").small_journal();
    second.data = home.data.clone();
    refused(&second, ENVIRONMENT, &[&home.data.display().to_string()]);
    assert!(first.is_running(), "the first one goes on");
    first.kill();
    // The lock ends with the process, also after kill -9.
    second.start();
}

#[test]
fn a_port_in_use_is_named() {
    let home = Home::new("port").small_journal();
    let held = TcpListener::bind(home.client).unwrap();
    refused(&home, ENVIRONMENT, &[&home.client.to_string()]);
    drop(held);
    let held = TcpListener::bind(home.admin).unwrap();
    refused(&home, ENVIRONMENT, &[&home.admin.to_string()]);
    drop(held);
    home.start();
}

#[test]
fn two_nodes_never_share_a_port() {
    // Shards share their listener among themselves; another node must not get in between.
    let home = Home::new("share").small_journal();
    let _first = home.start();
    let mut second = Home::new("share-too").small_journal();
    second.client = home.client;
    refused(&second, ENVIRONMENT, &[&home.client.to_string()]);
}

#[test]
fn a_data_directory_that_is_a_file_is_named() {
    let home = Home::new("file");
    fs::write(&home.data, "not a folder").unwrap();
    refused(&home, ENVIRONMENT, &[&home.data.display().to_string()]);
}

#[test]
fn settings_that_do_not_exist_or_fit_are_refused() {
    refused(
        &Home::new("unknown").set("storage.journl_file_bytes", "8MiB"),
        REFUSED,
        &["journl_file_bytes", "journal_file_bytes"],
    );
    refused(
        &Home::new("value").set("storage.journal_file_bytes", "many"),
        REFUSED,
        &["journal_file_bytes", "many"],
    );
    refused(&Home::new("core").set("cores.shards", "[8000]"), ENVIRONMENT, &["8000", "does not exist"]);
    refused(&Home::new("shards").set("cores.shard_count", "1000"), ENVIRONMENT, &["1000 shards do not fit"]);
}

#[test]
fn a_config_file_with_a_mistake_names_the_line() {
    let home = Home::new("yaml");
    fs::create_dir_all(&home.root).unwrap();
    let file = home.root.join("node.yaml");
    fs::write(&file, "cluster:\n  node_id: 1\nstorage:\n  durabilty: fsync\n").unwrap();
    for check in [&["config", "check"][..], &["serve", "--config"]] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_highwater"));
        let output = command.args(check).arg(&file).current_dir(&home.root).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(REFUSED), "{check:?}: {said}");
        for word in ["node.yaml", "4", "durabilty", "durability"] {
            assert!(said.contains(word), "{check:?}: {word:?} is missing from:\n{said}");
        }
    }
}
