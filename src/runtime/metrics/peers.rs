//! What the connections to other nodes count, by node: a table like those of the other families.
//!
//! Bytes of streams between shards are the shards' own, and stand among their loops' events.

use std::fmt::Display;

use super::{Exposition, Family, Kind, counter, gauge};
use crate::net::Class;
use crate::net::stats::{ClassStats, NetStats, PeerStats};

const NET: [Family<NetStats>; 3] = [
    gauge("peer_connections_inbound", "Open connections for calls that other nodes opened.", |s| s.inbound),
    gauge("peer_connections_unproven", "Connections whose other end has not proven who it is.", |s| {
        s.unproven
    }),
    gauge("peer_calls_waiting_bytes", "Bytes of other nodes' calls that this node has not answered.", |s| {
        s.incoming_bytes
    }),
];

const PEER: [Family<PeerStats>; 11] = [
    counter("peer_received_bytes_total", "Bytes of calls and answers from the node.", |s| s.bytes_in),
    counter("peer_sent_bytes_total", "Bytes of calls and answers to the node.", |s| s.bytes_out),
    counter("peer_received_frames_total", "Frames of calls and answers from the node.", |s| s.frames_in),
    counter("peer_sent_frames_total", "Frames of calls and answers to the node.", |s| s.frames_out),
    gauge("peer_connections", "Open connections for calls with the node, of both directions.", |s| {
        s.connections
    }),
    counter("peer_dialed_total", "Connections for calls opened to the node.", |s| s.dialed),
    counter("peer_reconnects_total", "Connections for calls opened anew to the node.", |s| s.reconnects),
    counter("peer_dial_failures_total", "Attempts to connect to the node for calls that failed.", |s| {
        s.dial_failures
    }),
    counter("peer_streams_dialed_total", "Streams between shards opened to the node.", |s| s.streams_dialed),
    counter("peer_streams_accepted_total", "Streams between shards that the node opened.", |s| {
        s.streams_accepted
    }),
    counter("peer_stream_failures_total", "Attempts to open a stream to the node that failed.", |s| {
        s.streams_failed
    }),
];

/// Why a call has no answer.
type CallFailure = (&'static str, fn(&ClassStats) -> u64);

const CALL_FAILURES: [CallFailure; 4] = [
    ("timed out", |s| s.timed_out),
    ("refused", |s| s.refused),
    ("full", |s| s.full),
    ("unreachable", |s| s.unreachable),
];

pub(super) fn render(out: &mut Exposition, net: &NetStats) {
    for family in &NET {
        out.whole(family, net);
    }
    let name = "highwater_peer_refusals_total";
    out.family(name, Kind::Counter, "Connections of or to other nodes that were refused, by reason.");
    for (reason, count) in &net.refusals {
        out.sample(name, &[("reason", reason)], count);
    }
    for family in &PEER {
        let name = out.head(family);
        for peer in &net.peers {
            out.sample(&name, &[("node", &peer.node)], (family.value)(peer));
        }
    }
    let name = "highwater_peer_call_failures_total";
    out.family(name, Kind::Counter, "Calls to the node without an answer, by class and reason.");
    for_each_class(net, |labels, stats| {
        for (reason, value) in CALL_FAILURES {
            out.sample(name, &[labels[0], labels[1], ("reason", &reason)], value(stats));
        }
    });
    let name = "highwater_peer_call_seconds";
    out.family(name, Kind::Histogram, "From a call to the node to its answer, by class.");
    for_each_class(net, |labels, stats| {
        if let Some(recorded) = &stats.latency_us {
            out.latencies(name, &labels, recorded, 1_000);
        }
    });
}

fn for_each_class(net: &NetStats, mut each: impl FnMut([(&'static str, &dyn Display); 2], &ClassStats)) {
    for peer in &net.peers {
        for class in Class::ALL {
            each([("node", &peer.node), ("class", &class.name())], &peer.classes[class as usize]);
        }
    }
}
