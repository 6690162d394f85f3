//! Sockets between peers: how they are opened and set up. The only file of the peers that knows TCP.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, lookup_host};

use crate::control::metadata::image::Endpoint;
use crate::net::auth::Purpose;
use crate::net::frame::FRAME_MAX;

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_BETWEEN: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// For sent bytes to be acknowledged by the other host.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(10);

/// Shards say nothing on a stream where there is nothing to say, so the kernel asks instead: a host that is gone is
/// noticed within [`STREAM_KEEPALIVE_IDLE`] and [`STREAM_UNACKNOWLEDGED_MAX`] together.
const STREAM_KEEPALIVE_IDLE: Duration = Duration::from_secs(2);
const STREAM_KEEPALIVE_BETWEEN: Duration = Duration::from_secs(1);
const STREAM_UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(5);

/// Connects to the first address of the endpoint that answers, within `limit` in all. The name is resolved anew each time.
pub(super) async fn connect(endpoint: &Endpoint, limit: Duration) -> io::Result<(TcpStream, SocketAddr)> {
    let Endpoint { host, port } = endpoint;
    let resolve = lookup_host((host.as_str(), *port));
    let found = tokio::time::timeout(limit, resolve).await.map_err(|_| {
        io::Error::new(io::ErrorKind::TimedOut, format!("the name {host} was not resolved in time"))
    })?;
    let addresses: Vec<SocketAddr> = found
        .map_err(|error| io::Error::new(error.kind(), format!("the name {host} was not resolved: {error}")))?
        .take(ADDRESSES_MAX)
        .collect();
    let each = limit / u32::try_from(addresses.len().max(1)).expect("few addresses");
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("the name {host} has no address"));
    for address in addresses {
        last = match tokio::time::timeout(each, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok((stream, address)),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "the connection was not made in time"),
        };
    }
    Err(last)
}

/// Sets a socket up: nothing waits to be sent together, and a host that is gone is noticed. Of calls little waits in the
/// kernel, since what is urgent would queue behind it; a stream has one queue, and keeps it full.
pub(super) fn set_up(stream: &TcpStream, purpose: Purpose) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let (idle, between, unacknowledged) = match purpose {
        Purpose::Calls => (KEEPALIVE_IDLE, KEEPALIVE_BETWEEN, UNACKNOWLEDGED_MAX),
        Purpose::Stream { .. } => {
            (STREAM_KEEPALIVE_IDLE, STREAM_KEEPALIVE_BETWEEN, STREAM_UNACKNOWLEDGED_MAX)
        }
    };
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(between).with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(unacknowledged))?;
    if purpose == Purpose::Calls {
        socket.set_tcp_notsent_lowat(u32::try_from(FRAME_MAX).expect("64 KiB"))?;
    }
    Ok(())
}
