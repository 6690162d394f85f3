//! `GET /members`: who is alive, as gossip shows it to this node; and the routes that change this node's keys of gossip.
//!
//! Driver; control core's thread. Changes are taken as those of `cluster` are: from this host, and from no browser.
//! A node changes its own keys alone, so a rotation is each of these steps on every node, one after the other:
//!
//! | route | body | |
//! |---|---|---|
//! | `/members/keys/install` | `{"secret": "..."}` | accepts datagrams under its key too; the answer tells the key's number |
//! | `/members/keys/use` | `{"key": 17}` | seals with it |
//! | `/members/keys/remove` | `{"key": 4}` | refuses datagrams under it; `/members` counts what still arrives |
//!
//! A secret is neither logged nor answered, and its bytes are overwritten when the key was made.

use std::borrow::Cow;
use std::net::SocketAddr;

use bytes::Bytes;
use hyper::body::Body;
use hyper::{Request, StatusCode};
use serde::Deserialize;
use tokio::sync::mpsc;
use zeroize::{Zeroize as _, Zeroizing};

use super::super::boot::ask;
use super::super::{Command, KeyChange, KeySecret, MemberInfo, Snapshot};
use super::Answer;
use super::cluster::{body_of_change, json, refused};
use crate::control::swim::{Reject, Status};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InstallBody<'a> {
    #[serde(borrow)]
    secret: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyBody {
    key: u8,
}

/// Whether [`change`] answers this path.
pub(super) fn is_change(path: &str) -> bool {
    matches!(path, "/members/keys/install" | "/members/keys/use" | "/members/keys/remove")
}

/// Carries a change out, or says why not.
pub(super) async fn change<B>(
    request: Request<B>,
    client: SocketAddr,
    commands: &mpsc::Sender<Command>,
) -> Answer
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let path = request.uri().path().to_owned();
    let body = match body_of_change(request, client).await {
        Ok(body) => body,
        Err(refused) => return refused,
    };
    let change = match parse(&path, body) {
        Ok(change) => change,
        Err(why) => return refused(StatusCode::BAD_REQUEST, &why),
    };
    match ask(commands, |reply| Command::Keys { change, reply }).await {
        Some(Ok(done)) => json(StatusCode::OK, &serde_json::json!({ "done": done })),
        Some(Err(why)) => refused(StatusCode::CONFLICT, &why),
        None => refused(StatusCode::SERVICE_UNAVAILABLE, "the node is stopping"),
    }
}

fn parse(path: &str, body: Zeroizing<Vec<u8>>) -> Result<KeyChange, String> {
    let key = || {
        let read = serde_json::from_slice::<KeyBody>(&body);
        read.map(|body| body.key).map_err(|e| format!("not the body of this request: {e}"))
    };
    match path {
        "/members/keys/install" => {
            // What is wrong with it is not repeated: it may be most of a secret.
            let read = serde_json::from_slice::<InstallBody<'_>>(&body);
            let mut read = read.map_err(|_| "expected the body {\"secret\": \"...\"}".to_owned())?;
            let secret = KeySecret::new(read.secret.as_bytes());
            if let Cow::Owned(unescaped) = &mut read.secret {
                unescaped.zeroize();
            }
            secret.map(KeyChange::Install)
        }
        "/members/keys/use" => key().map(KeyChange::Use),
        _ => key().map(KeyChange::Remove),
    }
}

/// The members, the keys and the counts of gossip.
pub(super) fn render(snapshot: &Snapshot) -> String {
    let Some(gossip) = &snapshot.gossip else {
        let why = snapshot.forming.as_deref().unwrap_or("this node stands alone");
        return format!("{:#}\n", serde_json::json!({ "members": [], "keys": [], "waits_for": why }));
    };
    let stats = &gossip.stats;
    let rejected: serde_json::Map<String, serde_json::Value> = Reject::ALL
        .iter()
        .zip(stats.rejected)
        .map(|(why, count)| (reason(*why).into(), count.into()))
        .collect();
    let keys = gossip.keys.iter().enumerate();
    let keys: Vec<_> = keys
        .map(|(at, (key, received))| {
            serde_json::json!({ "key": key, "in_use": at == 0, "received": received })
        })
        .collect();
    let summary = serde_json::json!({
        "members": gossip.members.iter().map(member).collect::<Vec<_>>(),
        "keys": keys,
        "local_health": gossip.local_health,
        "probes": stats.probes,
        "probes_failed": stats.probes_failed,
        "suspicions": stats.suspicions,
        "refutations": stats.refutations,
        "deaths": stats.deaths,
        "bytes_sent": stats.bytes_sent,
        "bytes_received": stats.bytes_received,
        "rejected": rejected,
    });
    format!("{summary:#}\n")
}

fn member(member: &MemberInfo) -> serde_json::Value {
    serde_json::json!({
        "name": &*member.name,
        "address": member.addr.to_string(),
        "status": word(member.status),
        "life": member.incarnation.boot_count,
        "objections": member.incarnation.refutation,
        "version": member.version,
    })
}

/// A member's status as it is shown.
pub(in crate::runtime) fn word(status: Status) -> &'static str {
    match status {
        Status::Alive => "alive",
        Status::Suspect => "suspect",
        Status::Dead => "dead",
        Status::Left => "left",
    }
}

/// Why a datagram was refused, as it is shown.
pub(in crate::runtime) fn reason(reject: Reject) -> &'static str {
    match reject {
        Reject::Size => "size",
        Reject::Version => "version",
        Reject::Key => "key",
        Reject::Tag => "tag",
        Reject::Replay => "replay",
        Reject::UnknownBoot => "unknown_boot",
        Reject::Malformed => "malformed",
        Reject::Unasked => "unasked",
        Reject::Relay => "relay",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str, body: &str) -> Result<KeyChange, String> {
        super::parse(path, Zeroizing::new(body.as_bytes().to_vec()))
    }

    #[test]
    fn key_changes_are_read_and_a_wrong_body_is_not_repeated() {
        let install = "/members/keys/install";
        for body in [r#"{"secret":"0123456789abcdef"}"#, r#"{"secret":"0123456789\u0061bcdef"}"#] {
            assert!(matches!(parse(install, body), Ok(KeyChange::Install(_))), "{body}");
        }
        for body in
            [r#"{"secret":"short"}"#, r#"{"secret":"0123456789abcdef"#, r#"{"0123456789abcdef":1}"#, ""]
        {
            let why = parse(install, body).unwrap_err();
            assert!(!why.contains("0123") && !why.contains("short\""), "{why}");
        }
        assert!(matches!(parse("/members/keys/use", r#"{"key":17}"#), Ok(KeyChange::Use(17))));
        assert!(matches!(parse("/members/keys/remove", r#"{"key":255}"#), Ok(KeyChange::Remove(255))));
        for body in [r#"{"key":256}"#, r#"{"key":-1}"#, r#"{"key":1,"force":true}"#, "{}"] {
            assert!(parse("/members/keys/use", body).is_err(), "{body}");
        }
    }

    #[test]
    fn every_reason_has_a_name_of_its_own() {
        let mut names: Vec<_> = Reject::ALL.iter().map(|why| reason(*why)).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reject::ALL.len());
    }
}
