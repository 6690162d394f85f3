//! How a crash treats what was not durable.

use crate::rng::Rng;

/// How kind one crash is, so that the same crash keeps much here and there, or nothing anywhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mood {
    keep: u32,
    tear: u32,
}

impl Mood {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        match rng.below(4) {
            0 => Self { keep: 0, tear: 0 },
            1 => Self { keep: 1000, tear: 0 },
            2 => Self { keep: 500, tear: 500 },
            _ => Self { keep: u32::try_from(rng.below(1001)).expect("small"), tear: 300 },
        }
    }

    pub(super) fn keeps(self, rng: &mut Rng) -> bool {
        rng.chance(self.keep)
    }

    /// Of what was not kept: whether it comes to something in between.
    pub(super) fn tears(self, rng: &mut Rng) -> bool {
        rng.chance(self.tear)
    }
}

/// Mixes `new` into `old`, both of one length: the head of one and the tail of the other, or by 512-byte pieces.
pub(super) fn tear(rng: &mut Rng, old: &mut [u8], new: &[u8]) {
    assert_eq!(old.len(), new.len(), "two contents of one piece");
    match rng.below(3) {
        0 => {
            let cut = rng.index(new.len());
            old[..cut].copy_from_slice(&new[..cut]);
        }
        1 => {
            let cut = rng.index(new.len());
            old[cut..].copy_from_slice(&new[cut..]);
        }
        _ => {
            let pieces = rng.draw();
            for (i, (old, new)) in old.chunks_mut(512).zip(new.chunks(512)).enumerate() {
                if pieces >> (i % 64) & 1 == 1 {
                    old.copy_from_slice(new);
                }
            }
        }
    }
}
