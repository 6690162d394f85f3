//! What a node costs while nothing happens.

use std::time::Duration;

use crate::node::{Home, wait_for};
use crate::wire::{Conn, EARLIEST, NONE};

#[test]
fn an_idle_node_with_1000_partitions_is_small_and_quiet() {
    let home = Home::new("idle").small_journal();
    let node = home.start();
    let mut conn = Conn::open(node.client).unwrap();
    for topic in 0..10 {
        conn.create_topic(&format!("idle-{topic}"), 100, &[]);
    }
    assert_eq!(conn.list_offset("idle-9", 99, EARLIEST).unwrap(), (NONE, 0));
    let memory = node.memory();
    println!("{} MiB resident", memory >> 20);
    assert!(memory < 200 << 20, "{} MiB resident", memory >> 20);

    // Processor time, not wall-clock time: 5 s of idling may take at most 5 of 500 ticks. Looks again, because what
    // the creation of topics left to do is not idling.
    let window = Duration::from_secs(5);
    wait_for("5 seconds with less than 1 % of a core", || {
        let before = node.cpu_ticks();
        std::thread::sleep(window);
        let ticks = node.cpu_ticks() - before;
        println!("{ticks} ticks of 10 ms in {window:?}");
        (ticks <= 5).then_some(())
    });
}
