//! Membership: SWIM (Das, Gupta, Motivala 2002) with Lifeguard (Dadgar, Phillips, Currey 2018), authenticated.
//!
//! Control core, pure: datagrams, time and entropy are arguments, and what is to be sent is drained. [`Membership`]
//! knows nothing of the rest of the system, so it can be used on its own:
//!
//! ```
//! use highwater::control::swim::{Entropy, Event, Input, Keyring, Membership, Output, SwimConfig};
//! use highwater_shards::time::Instant;
//!
//! let member = |name: &str, port: u16, entropy: u8| {
//!     let addr = ([10, 0, 0, 1], port).into();
//!     let keys = Keyring::new("my-cluster", 1, &[7; 32]).expect("a secret of 32 bytes is long enough");
//!     Membership::new(SwimConfig::new(name, addr), keys, &Entropy([entropy; 32]), Instant::ZERO)
//! };
//! let (mut a, mut b) = (member("a", 7946, 1)?, member("b", 7947, 2)?);
//!
//! // B joins through A. A driver would send these datagrams with a socket; here they go straight to the other.
//! b.handle(Instant::ZERO, Input::Join { seeds: vec![([10, 0, 0, 1], 7946).into()] });
//! let mut joined = Vec::new();
//! let mut carry = |from: &mut Membership, to: &mut Membership, port: u16| {
//!     while let Some(output) = from.poll_output() {
//!         match output {
//!             Output::Send { bytes, .. } => {
//!                 to.handle(Instant::ZERO, Input::Datagram { from: ([10, 0, 0, 1], port).into(), bytes })
//!             }
//!             Output::Event(Event::Joined { name, .. }) => joined.push(name),
//!             _ => {}
//!         }
//!     }
//! };
//! for _ in 0..4 {
//!     carry(&mut b, &mut a, 7947);
//!     carry(&mut a, &mut b, 7946);
//! }
//! joined.sort();
//! assert_eq!(joined, ["a".into(), "b".into()]);
//! # Ok::<(), highwater::control::swim::ConfigError>(())
//! ```
//!
//! Beyond SWIM and Lifeguard there are seven [`Extensions`], each of which can be switched off in an experiment:
//! suspicions of a later incarnation start anew, outdated accusations are answered, a suspect's own datagrams count as
//! evidence, time in which the process was stalled does not count, and these three:
//!
//! - *Fair health.* Lifeguard slows down who fails at probing. When many crash at once that is everyone, so a probe is no
//!   fault of one's own when the relays answered that they failed too, and suspects are not chosen as relays.
//! - *Second opinions.* A suspicion is short once three others confirm it, and in a large cluster their turn to probe the
//!   suspect comes late. So each of those that hear of it probes it at once, out of turn, with a chance that makes six of
//!   them; and who has accused a suspect spends its turns on others.
//! - *Silence.* Who hears from nobody at all, with two others or more to hear from, takes that for its own fault: its
//!   probes accuse nobody and its suspicions wait, for as long as the longest of them.
//!
//! README.md has what each of them changes, in numbers.
//!
//! The driver's duties: hand in every waiting datagram before [`Input::Timeout`], drain outputs after each input, and
//! call [`Input::Timeout`] when [`Membership::poll_timeout`] says so. A process that was stalled then first learns what
//! happened meanwhile, and only then judges others.
//!
//! What never happens here: a datagram that is not authentic, or was seen before, changes anything; a reply goes to an
//! address that did not prove itself and is larger than what asked for it; a decision is taken from the hint that a
//! membership protocol is. The committed image of the metadata decides.

mod auth;
mod config;
mod events;
pub mod forge;
mod health;
mod hello;
mod keyring;
mod member;
mod members;
mod membership;
mod outbox;
mod probe;
mod queue;
mod rumors;
mod silence;
mod suspicion;
mod sync;
#[cfg(test)]
mod tests;
mod wire;

pub use self::auth::Reject;
pub use self::config::{ConfigError, Extensions, SwimConfig};
pub use self::events::{Event, Input, MemberView, Output, SwimStats};
pub use self::keyring::{KeyError, Keyring};
pub use self::member::{Incarnation, Status};
pub use self::membership::{Entropy, Membership};

/// Members at most, tombstones included.
pub const MEMBERS_MAX: usize = 4096;
/// Bytes of a name at most.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of a member's metadata at most.
pub const METADATA_BYTES_MAX: usize = 512;
/// Bytes of a datagram at most, so that it crosses any usual path in one piece.
pub const DATAGRAM_BYTES_MAX: usize = 1400;
/// New members that one datagram can introduce.
const NEW_PER_DATAGRAM_MAX: usize = 16;
/// New members in a second, and at once after a quiet second.
const NEW_PER_SECOND_MAX: u32 = 256;
/// Indirect probes for others that are under way at most.
const RELAYS_MAX: usize = 256;
/// Indirect probes in a second for one requester.
const RELAYS_PER_SECOND_MAX: u8 = 10;
/// Seeds that are asked in one try.
const SEEDS_MAX: usize = 16;
/// Peers that proved themselves and are not members yet.
const GREETED_MAX: usize = 256;
/// Datagrams that wait to be drained; more are dropped, as a network may.
const OUTBOX_DATAGRAMS_MAX: usize = 8192;
/// Boots of forgotten members, which must prove themselves anew.
const RETIRED_MAX: usize = 1024;
