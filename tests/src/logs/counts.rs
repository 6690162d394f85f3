//! What happened in runs: so that one sees that each path was reached.

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

counts! {
    /// Operations of the disk, and their ends.
    steps,
    lives,
    kills,
    power_losses,
    stops,
    fatals,
    crashes_in_recovery,
    clean_starts,
    checkpoint_starts,
    rebuilds,
    appends,
    truncations,
    truncations_of_moved,
    starts,
    drops,
    refused,
    throttled,
    moves,
    segments_begun,
    segments_removed,
    cuts,
    indexes_written,
    folders_removed,
    files_prepared,
    files_recycled,
    files_removed,
    checkpoints,
    retained,
    compactions,
    compacted_reads,
    reads,
    later_reads,
    gone,
    overloaded,
    damaged_reads,
    found,
    faults,
    rots,
    batches_verified,
}
