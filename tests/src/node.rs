//! Nodes of real shards, behind the simulator's own protocol or behind Kafka's.

use highwater::kafka::Kafka;
use highwater_shards::log::journal::JournalConfig;
use highwater_shards::log::storage::StorageConfig;
use highwater_shards::shard::{ReplicationConfig, Shard, ShardConfig};

use crate::config::Config;
use crate::control::SELF;
use crate::front::{SimFront, SimWire};
use crate::kafka::KafkaWire;
use crate::rng::Rng;
use crate::world::{Builder, Plan};

#[derive(Clone, Copy, Debug, Default)]
pub struct ShardBuilder;

impl Builder for ShardBuilder {
    type Wire = SimWire;
    type Machine = Shard<SimFront>;

    fn wire(&self, _: &Config) -> SimWire {
        SimWire
    }

    fn build(&mut self, plan: Plan<'_, SimFront>) -> Shard<SimFront> {
        Shard::new(shard_config(&plan), plan.front)
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct KafkaBuilder;

impl Builder for KafkaBuilder {
    type Wire = KafkaWire;
    type Machine = Shard<Kafka>;

    fn wire(&self, config: &Config) -> KafkaWire {
        KafkaWire::new(*Rng::new(config.seed, "kafka config", 0).pick(&[0, 10_000, 1 << 20]))
    }

    fn build(&mut self, plan: Plan<'_, Kafka>) -> Shard<Kafka> {
        Shard::new(shard_config(&plan), plan.front)
    }
}

/// Bounds small enough to be met in a run; drawn once for all lives of the node.
pub fn shard_config<F>(plan: &Plan<'_, F>) -> ShardConfig {
    let config = plan.config;
    let mut r = Rng::new(config.seed, "shard config", 0);
    let batch_bytes_max = config.batch_bytes_max as usize;
    ShardConfig {
        node: SELF,
        shard: plan.shard,
        storage: StorageConfig {
            tail_bytes_max: *r.pick(&[0, 10_000, 100_000, 100_000_000]),
            ..StorageConfig::new(JournalConfig {
                file_bytes: config.file_bytes,
                batch_bytes_max,
                chunk_bytes_max: *r.pick(&[4, 16, 64, 1024]) * 1024,
                flush_interval: config.flush_interval,
                writes_in_flight_max: 1 + r.index(4),
                backlog_bytes_max: batch_bytes_max * *r.pick(&[1, 4, 64]),
                ..JournalConfig::new(plan.shard, plan.seed)
            })
        },
        unsent_bytes_max: *r.pick(&[10_000, 1_000_000]),
        in_flight_max: *r.pick(&[1, 2, 100]),
        remote_ops_max: *r.pick(&[4, 1000]),
        replication: ReplicationConfig::default(),
    }
}
