//! Cuts a byte stream into frames, each behind its length as 4 bytes, big-endian. Clients speak so, and so do peers.
//!
//! Floor 0, pure: it never touches a socket. A frame that lies whole inside a received slice costs one copy, and small
//! ones that follow each other share one allocation: pipelined requests come by the hundred in a slice, and allocating
//! each cost more than the rest of their way through the driver. For a big one whose end is far off, the driver takes the half-filled body out ([`FrameAssembler::take_body`]), receives
//! straight into it and puts it back, so that its bytes are not copied a second time.
//!
//! Memory follows the bytes that came, never the announced length: a body's room is at most 64 KiB or four times
//! what it holds, whichever is more, so announcing 100 MiB and sending little takes little.

use bytes::Bytes;

/// Bytes of the length before each frame.
pub const PREFIX: usize = 4;

/// The room that a body gets before any of its bytes came, in bytes.
const STEP: usize = 64 * 1024;

/// How far a body's room may run ahead of what it holds. A larger factor moves fewer bytes while a body grows and
/// lets a stalled sender hold more memory for each byte that it sent.
const GROWTH: usize = 4;

/// Frames up to this many bytes may share an allocation with their neighbours.
const SMALL: usize = 1024;

/// Bytes of a shared allocation at most, prefixes included: what one small frame that is kept can hold on to.
const RUN: usize = 4096;

/// The stream cannot be cut any further; its connection has to be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    #[error(
        "a frame announced {announced} bytes, and {max} are allowed; raise the limit or send smaller requests"
    )]
    TooLarge { announced: u32, max: u32 },
    #[error("a frame announced the negative length {0}: the peer does not speak this protocol")]
    Negative(i32),
}

/// A frame whose length is known and whose end has not come.
#[derive(Debug)]
pub struct Body {
    /// What came; its spare capacity is where the next bytes belong.
    pub bytes: Vec<u8>,
    len: usize,
}

impl Body {
    /// Bytes that have not come, at least 1.
    pub fn missing(&self) -> usize {
        self.len - self.bytes.len()
    }

    /// Makes room for more of the body: at least one byte, at most the whole rest.
    fn grow(&mut self) {
        let room = (self.bytes.len() * GROWTH).max(STEP).min(self.len);
        if room > self.bytes.capacity() {
            self.bytes.reserve_exact(room - self.bytes.len());
        }
    }

    /// Takes bytes from the front of `input`.
    fn fill(&mut self, input: &mut &[u8]) {
        while !input.is_empty() && self.missing() > 0 {
            if self.bytes.len() == self.bytes.capacity() {
                self.grow();
            }
            let room = (self.bytes.capacity() - self.bytes.len()).min(self.missing()).min(input.len());
            let (head, rest) = input.split_at(room);
            self.bytes.extend_from_slice(head);
            *input = rest;
        }
    }
}

#[derive(Debug)]
enum State {
    /// Between frames, or inside a prefix of which so many bytes came.
    Prefix {
        bytes: [u8; PREFIX],
        len: usize,
    },
    Body(Body),
    /// The driver holds the body.
    Taken,
}

const BETWEEN: State = State::Prefix { bytes: [0; PREFIX], len: 0 };

fn frame_len(announced: i32, max: u32) -> Result<usize, FrameError> {
    let len = u32::try_from(announced).map_err(|_| FrameError::Negative(announced))?;
    if len > max {
        return Err(FrameError::TooLarge { announced: len, max });
    }
    Ok(len as usize)
}

/// Hands out the small frames that lie whole at the front of `input`, as parts of one copy, and returns the rest. Takes
/// nothing when there are not two of them.
fn cut_run<'a>(input: &'a [u8], frame_bytes_max: u32, each: &mut impl FnMut(Bytes)) -> &'a [u8] {
    let small = SMALL.min(frame_bytes_max as usize);
    let frame_end = |start: usize| {
        let prefix = input.get(start..start + PREFIX)?;
        let len = u32::from_be_bytes(prefix.try_into().expect("a prefix is 4 bytes")) as usize;
        let end = start + PREFIX + len;
        (len <= small && end <= input.len().min(RUN)).then_some(end)
    };
    let Some(first_end) = frame_end(0) else { return input };
    let Some(mut end) = frame_end(first_end) else { return input };
    while let Some(next) = frame_end(end) {
        end = next;
    }
    let run = Bytes::copy_from_slice(&input[..end]);
    let mut start = 0;
    while start < end {
        let frame_end = frame_end(start).expect("found above");
        each(run.slice(start + PREFIX..frame_end));
        start = frame_end;
    }
    &input[end..]
}

/// The receiving half of one connection's framing.
#[derive(Debug)]
pub struct FrameAssembler {
    frame_bytes_max: u32,
    state: State,
}

impl FrameAssembler {
    pub fn new(frame_bytes_max: u32) -> Self {
        Self { frame_bytes_max, state: BETWEEN }
    }

    /// Takes in received bytes and hands each whole frame, without its prefix, to `each`.
    ///
    /// # Errors
    ///
    /// At the first prefix that is no acceptable length; frames before it were handed out, and each later call
    /// fails in the same way.
    pub fn feed(&mut self, mut input: &[u8], mut each: impl FnMut(Bytes)) -> Result<(), FrameError> {
        loop {
            match &mut self.state {
                State::Prefix { bytes, len } => {
                    if *len == 0 {
                        let rest = cut_run(input, self.frame_bytes_max, &mut each);
                        if rest.len() < input.len() {
                            input = rest;
                            continue;
                        }
                    }
                    let n = (PREFIX - *len).min(input.len());
                    bytes[*len..*len + n].copy_from_slice(&input[..n]);
                    *len += n;
                    input = &input[n..];
                    if *len < PREFIX {
                        return Ok(());
                    }
                    let body_len = frame_len(i32::from_be_bytes(*bytes), self.frame_bytes_max)?;
                    if input.len() >= body_len {
                        let (frame, rest) = input.split_at(body_len);
                        self.state = BETWEEN;
                        input = rest;
                        each(Bytes::copy_from_slice(frame));
                    } else {
                        self.state = State::Body(Body { bytes: Vec::new(), len: body_len });
                    }
                }
                State::Body(body) => {
                    body.fill(&mut input);
                    if body.missing() > 0 {
                        return Ok(());
                    }
                    each(Bytes::from(std::mem::take(&mut body.bytes)));
                    self.state = BETWEEN;
                }
                State::Taken => panic!("a frame assembler is not fed while its body is out"),
            }
        }
    }

    /// Bytes that are missing of the frame whose beginning came; 0 when there is none or its length is not known.
    pub fn missing(&self) -> usize {
        match &self.state {
            State::Body(body) => body.missing(),
            State::Prefix { .. } | State::Taken => 0,
        }
    }

    /// Takes out the unfinished body, with room for at least one byte and never for more than is missing, so that
    /// the driver can receive into its spare capacity. Nothing may be fed until [`Self::put_body`].
    pub fn take_body(&mut self) -> Option<Body> {
        if !matches!(self.state, State::Body(_)) {
            return None;
        }
        let State::Body(mut body) = std::mem::replace(&mut self.state, State::Taken) else {
            unreachable!("matched above")
        };
        body.grow();
        Some(body)
    }

    /// Puts the body back, longer by what came. Returns the frame when it is whole.
    pub fn put_body(&mut self, body: Body) -> Option<Bytes> {
        assert!(matches!(self.state, State::Taken), "a body is put back where it was taken");
        assert!(body.bytes.len() <= body.len, "a body is not filled past the end of its frame");
        if body.missing() > 0 {
            self.state = State::Body(body);
            return None;
        }
        self.state = BETWEEN;
        Some(Bytes::from(body.bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(frames: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for frame in frames {
            out.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_be_bytes());
            out.extend_from_slice(frame);
        }
        out
    }

    fn feed(a: &mut FrameAssembler, input: &[u8]) -> Result<Vec<Bytes>, FrameError> {
        let mut out = Vec::new();
        a.feed(input, |f| out.push(f)).map(|()| out)
    }

    /// A small generator, so that a failure repeats.
    struct Lcg(u64);

    impl Lcg {
        fn below(&mut self, n: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(self.0 >> 33).unwrap() % n
        }
    }

    #[test]
    fn many_frames_in_one_slice_come_out_in_order() {
        let mut a = FrameAssembler::new(100);
        let out = feed(&mut a, &framed(&[b"one", b"", b"three"])).unwrap();
        assert_eq!(out, [&b"one"[..], b"", b"three"]);
        assert_eq!(a.missing(), 0);
    }

    #[test]
    fn bytes_that_come_one_by_one_make_the_same_frames() {
        let mut a = FrameAssembler::new(100);
        let mut out = Vec::new();
        for byte in framed(&[b"one", b"", b"three"]) {
            out.extend(feed(&mut a, &[byte]).unwrap());
        }
        assert_eq!(out, [&b"one"[..], b"", b"three"]);
    }

    #[test]
    fn any_split_and_any_mix_of_feeding_and_bodies_makes_the_same_frames() {
        for seed in 0..200 {
            let mut rng = Lcg(seed);
            let frames: Vec<Vec<u8>> = (0..20)
                .map(|_| {
                    let len = if rng.below(4) == 0 { rng.below(300_000) } else { rng.below(300) };
                    (0..len).map(|i| (i * 31 + len) as u8).collect()
                })
                .collect();
            let refs: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
            let stream = framed(&refs);
            let mut a = FrameAssembler::new(300_000);
            let mut out = Vec::new();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                if a.missing() > 0 && rng.below(2) == 0 {
                    let mut body = a.take_body().unwrap();
                    let room = (body.bytes.capacity() - body.bytes.len()).min(body.missing());
                    assert!(room > 0);
                    let n = rng.below(room.min(rest.len())) + 1;
                    body.bytes.extend_from_slice(&rest[..n]);
                    rest = &rest[n..];
                    out.extend(a.put_body(body));
                } else {
                    let n = rng.below(rest.len().min(40_000)) + 1;
                    out.extend(feed(&mut a, &rest[..n]).unwrap());
                    rest = &rest[n..];
                }
            }
            assert_eq!(out, frames, "seed {seed}");
        }
    }

    #[test]
    fn small_frames_share_allocations_of_a_bounded_size() {
        let frames: Vec<&[u8]> = vec![&[5; 100]; 100];
        let out = feed(&mut FrameAssembler::new(1000), &framed(&frames)).unwrap();
        assert_eq!(out, frames);
        let (first, last) = (out[0].as_ptr() as usize, out[RUN / 104 - 1].as_ptr() as usize);
        assert_eq!(last - first, 104 * (RUN / 104 - 1), "one run");
        // Where the allocator puts the next run is its own affair, but not right behind: it keeps a header there.
        assert_ne!(out[RUN / 104].as_ptr() as usize, first + 104 * (RUN / 104), "the next run");
    }

    #[test]
    fn a_limit_below_the_size_of_small_frames_holds_for_runs() {
        let mut a = FrameAssembler::new(10);
        let mut out = Vec::new();
        let error = a.feed(&framed(&[b"a", b"b", &[0; 11]]), |f| out.push(f));
        assert_eq!(error, Err(FrameError::TooLarge { announced: 11, max: 10 }));
        assert_eq!(out, [&b"a"[..], b"b"]);
    }

    #[test]
    fn hostile_lengths_are_refused_again_and_again() {
        let mut a = FrameAssembler::new(1000);
        let negative = FrameError::Negative(-1);
        assert_eq!(feed(&mut a, &[0xff; 4]), Err(negative));
        assert_eq!(feed(&mut a, b"more"), Err(negative));
        let mut a = FrameAssembler::new(1000);
        assert_eq!(
            feed(&mut a, &1001_u32.to_be_bytes()),
            Err(FrameError::TooLarge { announced: 1001, max: 1000 })
        );
        let mut a = FrameAssembler::new(1000);
        assert_eq!(feed(&mut a, &framed(&[&[7; 1000]])).unwrap().len(), 1);
    }

    #[test]
    fn frames_before_a_bad_length_are_handed_out() {
        let mut a = FrameAssembler::new(10);
        let mut input = framed(&[b"good"]);
        input.extend_from_slice(&[0xff; 4]);
        let mut out = Vec::new();
        assert!(a.feed(&input, |f| out.push(f)).is_err());
        assert_eq!(out, [&b"good"[..]]);
    }

    #[test]
    fn memory_follows_the_bytes_that_came_and_not_the_announced_length() {
        let mut a = FrameAssembler::new(u32::MAX);
        feed(&mut a, &i32::MAX.to_be_bytes()).unwrap();
        let mut came = 0;
        for n in [1, 1, 70_000, 1000, 500_000, 1] {
            feed(&mut a, &vec![0; n]).unwrap();
            came += n;
            let body = a.take_body().unwrap();
            assert_eq!(body.bytes.len(), came);
            assert!(body.bytes.capacity() <= (came * GROWTH).max(STEP), "{}", body.bytes.capacity());
            assert!(body.bytes.capacity() > came);
            assert_eq!(a.put_body(body), None);
        }
    }
}
