//! Golden bytes: frames as clients send them, and the answers byte for byte.

use super::*;

fn bytes(hex: &str) -> Bytes {
    let digits: Vec<_> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// Feeds one frame and answers the one operation it may lead to.
fn exchange(request: &str, answer: Option<Answer>) -> Bytes {
    let mut client = Client::new();
    client.frame(bytes(request));
    if let Some(answer) = answer {
        let op = client.op();
        client.answer(op.token, answer);
    }
    client.frames().remove(0)
}

#[test]
fn a_python_clients_first_request_is_understood() {
    // ApiVersions 0, as kafka-python and aiokafka begin: client id "kafka-python", no body.
    let answer = exchange("0012 0000 00000001 000c 6b61666b612d707974686f6e", None);
    assert_eq!(&answer[..10], &bytes("00000001 0000 00000012")[..]);
    assert_eq!(&answer[10..22], &bytes("0000 0000 000d 0001 0004 0012")[..]);
    assert_eq!(answer.len(), 10 + 18 * 6);
}

#[test]
fn librdkafkas_first_request_is_understood() {
    // ApiVersions 3: client id "rdkafka", tags, software name "librdkafka", version "2.0.2", tags.
    let answer =
        exchange("0012 0003 00000001 0007 72646b61666b61 00 0b 6c696272646b61666b61 06 322e302e32 00", None);
    // The header has no tags although the body is flexible.
    assert_eq!(&answer[..7], &bytes("00000001 0000 13")[..]);
    assert_eq!(&answer[answer.len() - 5..], &bytes("00000000 00")[..]);
}

#[test]
fn librdkafkas_produce_is_answered_byte_for_byte() {
    // Produce 7: client id "rdkafka", no transaction, acks -1, timeout 5000, topic "events", partition 1, 4 bytes.
    let answer = exchange(
        "0000 0007 00000003 0007 72646b61666b61 ffff ffff 00001388 \
         00000001 0006 6576656e7473 00000001 00000001 00000004 deadbeef",
        Some(appended(0x2a)),
    );
    let expected = bytes(
        "00000003 00000001 0006 6576656e7473 00000001 \
         00000001 0000 000000000000002a ffffffffffffffff 0000000000000000 00000000",
    );
    assert_eq!(answer, expected);
}

#[test]
fn a_flexible_produce_is_answered_byte_for_byte() {
    // Produce 9: the same with compact lengths, empty tags, and client id "c".
    let answer = exchange(
        "0000 0009 00000004 0001 63 00 00 0001 00001388 02 07 6576656e7473 02 00000000 05 deadbeef 00 00 00",
        Some(appended(1)),
    );
    let expected = bytes(
        "00000004 00 02 07 6576656e7473 02 \
         00000000 0000 0000000000000001 ffffffffffffffff 0000000000000000 01 00 00 00 00000000 00",
    );
    assert_eq!(answer, expected);
}

#[test]
fn rskafkas_fetch_is_answered_byte_for_byte() {
    // Fetch 4: no client id, replica -1, wait 500, bytes 1..1048576, uncommitted, topic "events", partition 0, offset 5.
    let answer = exchange(
        "0001 0004 00000009 ffff ffffffff 000001f4 00000001 00100000 00 \
         00000001 0006 6576656e7473 00000001 00000000 0000000000000005 00100000",
        Some(read_out(6, &[b"\x01\x02"], false)),
    );
    let expected = bytes(
        "00000009 00000000 00000001 0006 6576656e7473 00000001 \
         00000000 0000 0000000000000006 0000000000000006 ffffffff 00000002 0102",
    );
    assert_eq!(answer, expected);
}

#[test]
fn librdkafkas_fetch_is_answered_byte_for_byte() {
    // Fetch 11: client id "rdkafka", committed, session 0 epoch -1, epoch -1, rack "".
    let answer = exchange(
        "0001 000b 00000009 0007 72646b61666b61 ffffffff 000001f4 00000001 03200000 01 00000000 ffffffff \
         00000001 0006 6576656e7473 00000001 00000000 ffffffff 0000000000000005 ffffffffffffffff 00100000 \
         00000000 0000",
        Some(read_out(6, &[b"\x01", b"\x02"], false)),
    );
    let expected = bytes(
        "00000009 00000000 0000 00000000 00000001 0006 6576656e7473 00000001 \
         00000000 0000 0000000000000006 0000000000000006 0000000000000000 00000000 ffffffff 00000002 0102",
    );
    assert_eq!(answer, expected);
}
