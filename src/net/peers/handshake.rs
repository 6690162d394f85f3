//! The handshake over a byte stream, from both ends. Until the other end's proof holds, all it needs are the fixed
//! buffers in here.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use highwater_shards::ids::NodeId;

use crate::net::auth::{
    Acceptor, Dialer, HELLO_LEN, HandshakeError, Judged, Knows, NONCE_LEN, OPEN_LEN, PROOF_LEN, PeerIdentity,
    Purpose, Secret, VERDICT_LEN,
};

/// What a dialer brings to a handshake.
pub(super) struct Own<'a> {
    pub secret: &'a Secret,
    pub me: PeerIdentity,
    pub knows: Knows<'a>,
}

/// Fresh entropy for one handshake.
pub(super) fn nonce() -> io::Result<[u8; NONCE_LEN]> {
    let mut nonce = [0; NONCE_LEN];
    let drawn = rustix::rand::getrandom(&mut nonce[..], rustix::rand::GetRandomFlags::empty())?;
    if drawn == NONCE_LEN { Ok(nonce) } else { Err(io::Error::other("the host has too little entropy")) }
}

/// The dialer's end. The result says in [`Judged::refusal`] whether both may talk.
pub(super) async fn dial<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    own: &Own<'_>,
    to: Option<NodeId>,
    purpose: Purpose,
    nonce: &[u8; NONCE_LEN],
) -> Result<Box<Judged>, HandshakeError> {
    let mut dialer = Dialer::new(own.me, to, purpose, nonce);
    send(stream, dialer.hello()).await?;
    let mut hello = [0; HELLO_LEN];
    receive(stream, &mut hello).await?;
    let proof = dialer.prove(own.secret, &hello)?;
    send(stream, &proof).await?;
    let mut verdict = [0; VERDICT_LEN];
    receive(stream, &mut verdict).await.map_err(|_| HandshakeError::NoVerdict)?;
    let (judged, open) = dialer.finish(own.secret, &verdict, own.knows)?;
    let sent = send(stream, &open).await;
    // A refused dialer may find the connection closed already, and still knows why.
    if judged.refusal.is_none() {
        sent?;
    }
    Ok(Box::new(judged))
}

/// The acceptor's end, as [`dial`]: `hear` takes the dialer's hello and `judge` its proof. What is held while it waits is
/// what a stranger costs, so nothing outlives its use.
pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    hear: impl FnOnce(&[u8; HELLO_LEN]) -> Result<Acceptor, HandshakeError>,
    judge: impl FnOnce(&Acceptor, &[u8; PROOF_LEN]) -> Result<(Judged, [u8; VERDICT_LEN]), HandshakeError>,
) -> Result<Box<Judged>, HandshakeError> {
    let mut judged = {
        let acceptor = {
            let mut hello = [0; HELLO_LEN];
            receive(stream, &mut hello).await?;
            hear(&hello)?
        };
        send(stream, acceptor.hello()).await?;
        let mut proof = [0; PROOF_LEN];
        receive(stream, &mut proof).await?;
        let (judged, verdict) = judge(&acceptor, &proof)?;
        let judged = Box::new(judged);
        send(stream, &verdict).await?;
        judged
    };
    let mut open = [0; OPEN_LEN];
    // Taken from a refused dialer too: closing with something unread could cost it the verdict.
    match receive(stream, &mut open).await {
        Ok(()) => judged.opened(&open)?,
        Err(error) if judged.refusal.is_none() => return Err(error),
        Err(_) => {}
    }
    Ok(judged)
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, bytes: &[u8]) -> Result<(), HandshakeError> {
    stream.write_all(bytes).await.map_err(|_| HandshakeError::Unfinished)?;
    stream.flush().await.map_err(|_| HandshakeError::Unfinished)
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut S, bytes: &mut [u8]) -> Result<(), HandshakeError> {
    stream.read_exact(bytes).await.map(drop).map_err(|_| HandshakeError::Unfinished)
}
