//! Garbage from outside, and garbage under the right key.

use std::ops::Range;

use super::super::auth::{self, To};
use super::super::member::{Id, mix};
use super::super::wire;
use super::*;

/// Bodies that a key holder might send: good ones with pieces changed, cut or doubled, and noise.
pub fn bodies(seeds: Range<u64>) {
    let mut net = Net::joined(3);
    net.run(Duration::from_secs(1));
    let record = std::mem::take(&mut net.record);
    let bodies: Vec<&[u8]> = record.iter().map(|sent| &sent.bytes[26..sent.bytes.len() - 16]).collect();
    let (id, boot) = (net.node(0).id, net.node(0).boot);
    let (from, from_boot) = (net.node(1).id, net.node(1).boot);
    let mut taken = 0;
    for seed in seeds {
        let mut draw = seed;
        let mut below = |n: usize| {
            draw = mix(draw);
            usize::try_from(draw % n as u64).unwrap()
        };
        let mut body = bodies[below(bodies.len())].to_vec();
        for _ in 0..below(4) {
            match below(5) {
                0 if !body.is_empty() => {
                    let at = below(body.len());
                    body[at] = u8::try_from(below(256)).unwrap();
                }
                1 => body.truncate(below(body.len() + 1)),
                2 => body.extend_from_within(..body.len().min(300)),
                3 => body.extend((0..below(200)).map(|n| mix(seed ^ n as u64) as u8)),
                _ => body.insert(0, u8::try_from(1 + below(13)).unwrap()),
            }
        }
        body.truncate(1300);
        let _ = wire::read(&body).map(|(_, news)| news.count());
        let mut bytes = Vec::new();
        auth::begin(&mut bytes);
        bytes.extend_from_slice(&body);
        let number = (1 << 32) + seed;
        let to = if below(20) == 0 { To::Any } else { To::One { id, boot, number } };
        let from = if below(10) == 0 { (Id(seed), seed) } else { (from, from_boot) };
        auth::seal(&keys(), from.0, from.1, to, &mut bytes);
        let before = net.node(0).stats().rejected;
        net.feed(0, Input::Datagram { from: addr(1), bytes: &bytes });
        taken += usize::from(net.node(0).stats().rejected == before);
        net.queue.clear();
        net.record.clear();
        net.run(Duration::from_millis(3));
        assert!(net.node(0).members().count() <= MEMBERS_MAX);
    }
    assert!(taken > 100, "most of it was refused at once: {taken}");
}

#[test]
fn noise_from_outside_is_refused() {
    let mut net = Net::joined(2);
    let table = net.table(0);
    for seed in 0..20_000_u64 {
        let len = usize::try_from(mix(seed) % 1500).unwrap();
        let mut bytes: Vec<u8> = (0..len as u64).map(|n| mix(seed << 16 | n) as u8).collect();
        if seed % 2 == 0 && len > 2 {
            bytes[0] = 0x11;
            bytes[1] = 1;
        }
        let now = net.now;
        net.node(0).handle(now, Input::Datagram { from: addr(1), bytes: &bytes });
        assert_eq!(net.node(0).poll_output(), None);
    }
    assert_eq!(net.table(0), table);
}

#[test]
fn garbage_under_the_right_key_does_no_harm() {
    bodies(3_000..9_000);
}
