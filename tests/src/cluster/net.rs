//! Who hears whom: nodes, and the controller as one more. And which of them run.

use std::time::Duration;

use highwater_shards::time::Instant;

/// One node, as others and its control plane see it.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    pub up: bool,
    /// Counted from 1.
    pub life: u32,
    /// When that began: the node's clock starts at zero then.
    pub born: Instant,
    /// It does not run before this.
    pub paused_until: Instant,
}

#[derive(Debug)]
pub struct Net {
    nodes: Vec<Standing>,
    /// How many cuts lie on the way from one to another.
    cuts: Vec<Vec<u32>>,
    /// How much longer than usual it takes from one to another.
    lags: Vec<Vec<Duration>>,
}

impl Net {
    pub fn new(nodes: usize) -> Self {
        let down = Standing { up: false, life: 0, born: Instant::ZERO, paused_until: Instant::ZERO };
        let ways = nodes + 1;
        Self {
            nodes: vec![down; nodes],
            cuts: vec![vec![0; ways]; ways],
            lags: vec![vec![Duration::ZERO; ways]; ways],
        }
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The controller, as one end of a way.
    pub fn controller(&self) -> usize {
        self.nodes.len()
    }

    pub fn node(&self, node: usize) -> &Standing {
        &self.nodes[node]
    }

    pub fn node_mut(&mut self, node: usize) -> &mut Standing {
        &mut self.nodes[node]
    }

    pub fn cut(&mut self, from: usize, to: usize) {
        self.cuts[from][to] += 1;
    }

    pub fn mend(&mut self, from: usize, to: usize) {
        self.cuts[from][to] = self.cuts[from][to].saturating_sub(1);
    }

    pub fn mend_all(&mut self) {
        self.cuts.iter_mut().for_each(|to| to.fill(0));
        self.end_lags();
    }

    pub fn set_lag(&mut self, from: usize, to: usize, lag: Duration) {
        self.lags[from][to] = lag;
    }

    pub fn end_lags(&mut self) {
        self.lags.iter_mut().for_each(|to| to.fill(Duration::ZERO));
    }

    pub fn lag(&self, from: usize, to: usize) -> Duration {
        self.lags[from][to]
    }

    pub fn is_open(&self, from: usize, to: usize) -> bool {
        self.cuts[from][to] == 0
    }

    /// The node runs, now.
    pub fn runs(&self, node: usize, now: Instant) -> bool {
        self.nodes[node].up && self.nodes[node].paused_until <= now
    }

    pub fn is_life(&self, node: usize, life: u32) -> bool {
        self.nodes[node].up && self.nodes[node].life == life
    }

    /// The node's own clock.
    pub fn clock(&self, node: usize, now: Instant) -> Instant {
        Instant::ZERO + now.since(self.nodes[node].born)
    }

    /// How long from now on the node does not run.
    pub fn pause_left(&self, node: usize, now: Instant) -> Duration {
        self.nodes[node].paused_until.max(now).since(now)
    }
}
