//! The fuzzer fuzzed: its corpus is what the formats write, its oracles can fail, its sealing reaches what lies behind
//! the CRCs.

use super::*;
use crate::target::u32_at;

#[test]
fn the_corpus_is_what_the_formats_write_now() {
    for target in targets() {
        let mut generated: Vec<_> =
            target.generate().into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
        generated.sort();
        let stored = corpus(target.as_ref()).unwrap_or_else(|e| panic!("{e}"));
        assert!(generated == stored, "{}: run highwater-fuzz --write-corpus", target.name());
    }
}

#[test]
fn every_target_stands_some_runs() {
    for target in targets() {
        let corpus = corpus(target.as_ref()).unwrap_or_else(|e| panic!("{e}"));
        for seed in 0..300 {
            run(target.as_ref(), &corpus, seed).unwrap_or_else(|e| panic!("{} {seed}: {e}", target.name()));
        }
    }
}

#[test]
fn files_that_were_not_damaged_pass_every_oracle() {
    for target in targets() {
        for (name, good) in target.generate() {
            for seed in 0..20 {
                let mut rng = Rng::new(seed, "whole", 0);
                let outcome = target.damaged(&mut rng, &good, &good);
                outcome
                    .and_then(|()| target.hostile(&mut rng, &good))
                    .unwrap_or_else(|e| panic!("{name}: {e}"));
            }
        }
    }
}

#[test]
fn wrong_data_under_right_crcs_is_seen_by_every_oracle() {
    for target in targets() {
        let (_, good) = &target.generate()[1];
        let mut caught = 0;
        for seed in 0..200 {
            let mut rng = Rng::new(seed, "wrong", 0);
            let mut bytes = good.clone();
            let at = rng.index(bytes.len());
            bytes[at] ^= 1 << rng.below(8);
            target.seal(&mut bytes);
            caught += usize::from(target.damaged(&mut rng, good, &bytes).is_err());
        }
        assert!(caught > 5, "{}: {caught}, the oracle hardly fails", target.name());
    }
}

#[test]
fn sealing_leaves_good_files_as_they_are() {
    for target in targets() {
        for (name, good) in target.generate() {
            let mut sealed = good.clone();
            target.seal(&mut sealed);
            let differs = sealed.iter().zip(&good).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{} {name}", target.name());
        }
    }
}

#[test]
fn sealed_damage_gets_behind_the_crcs() {
    let target = segment::Scanned;
    let (_, good) = &target.generate()[1];
    let mut bytes = good.clone();
    // A record's byte in the first batch: wrong data that no CRC tells.
    let at = 64 + 8 + u32_at(good, 68) - 1;
    bytes[at] ^= 1;
    let mut rng = Rng::new(1, "sealed", 0);
    target.damaged(&mut rng, good, &bytes).expect("the CRC tells it, so that nothing wrong is read");
    target.seal(&mut bytes);
    assert!(target.damaged(&mut rng, good, &bytes).is_err(), "the oracle sees data that differs");
}

#[test]
fn no_bit_flip_and_no_cut_of_a_small_file_makes_wrong_data_pass() {
    for target in targets() {
        for (name, good) in target.generate() {
            if good.len() > 20_000 {
                continue;
            }
            let mut rng = Rng::new(1, "flips", 0);
            let mut check = |bytes: &[u8], at: usize| {
                let outcome = target.damaged(&mut rng, &good, bytes);
                outcome.unwrap_or_else(|e| panic!("{} {name}, byte {at}: {e}", target.name()));
            };
            for at in 0..good.len() {
                // Of a chunk's padding, which nobody reads, one bit in each byte will do.
                for bit in 0..if good[at] == 0 { 1 } else { 8 } {
                    let mut bytes = good.clone();
                    bytes[at] ^= 1 << bit;
                    check(&bytes, at);
                }
                check(&good[..at], at);
            }
        }
    }
}
