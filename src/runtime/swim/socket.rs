//! One UDP socket, which is read and written without ever waiting.
//!
//! Driver; control core. Whether something waits in it is always asked of the kernel: what the runtime believes of that
//! may be older than a stall of this process, and timers must not run before what arrived meanwhile.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Type};
use tokio::io::Interest;

/// What the kernel is asked to hold of datagrams that were not read yet; it may give less.
const RECEIVE_BYTES: usize = 1 << 20;

pub(super) struct Socket {
    socket: UdpSocket,
    /// The same socket, for waiting alone.
    ready: tokio::net::UdpSocket,
    is_v6: bool,
}

/// A socket for [`super::Swim`]. On the IPv6 wildcard it takes IPv4 as well.
///
/// # Errors
/// Of the operating system, such as that the port is taken.
pub fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    // A smaller buffer loses more when this process is stalled, and works.
    let _ = socket.set_recv_buffer_size(RECEIVE_BYTES);
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

impl Socket {
    /// Needs the runtime that will drive it.
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let is_v6 = socket.local_addr()?.is_ipv6();
        let ready = tokio::net::UdpSocket::from_std(socket.try_clone()?)?;
        Ok(Self { socket, ready, is_v6 })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Waits until something may have arrived. After it, [`Self::receive`] has to be called until it says `None`, or
    /// this will wait for something newer.
    pub(super) async fn readable(&self) {
        if self.ready.readable().await.is_err() {
            // The runtime is shutting down, and this future with it.
            std::future::pending::<()>().await;
        }
        // Nothing is read here: this only says to the runtime that what it knew was taken note of.
        let _ = self.ready.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }

    /// The next datagram that waits, with its length and sender; one that is longer than the buffer is cut.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Option<(usize, SocketAddr)> {
        loop {
            match self.socket.recv_from(buffer) {
                Ok((len, from)) => return Some((len, plain(from))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // An error that the network reported about an earlier datagram: it is told once, and then is gone.
                Err(error) if is_reported(&error) => {}
                Err(_) => return None,
            }
        }
    }

    /// False when the datagram could not be sent, which then is lost, as on a network.
    pub(super) fn send(&self, to: SocketAddr, bytes: &[u8]) -> bool {
        let to = match to {
            SocketAddr::V4(v4) if self.is_v6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
            to => to,
        };
        self.socket.send_to(bytes, to).is_ok()
    }
}

/// The sender as others call it: an IPv4 address is one also where an IPv6 socket took it.
fn plain(from: SocketAddr) -> SocketAddr {
    let ip: IpAddr = from.ip().to_canonical();
    SocketAddr::new(ip, from.port())
}

fn is_reported(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionRefused | Kind::ConnectionReset | Kind::HostUnreachable | Kind::NetworkUnreachable
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_ipv6_wildcard_socket_talks_to_ipv4_under_its_plain_address() {
        let Ok(both) = bind("[::]:0".parse().unwrap()) else { return };
        let both = Socket::new(both).unwrap();
        let four = Socket::new(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
        let to: SocketAddr = ([127, 0, 0, 1], both.local_addr().unwrap().port()).into();
        assert!(four.send(to, b"to v6"));
        let mut buffer = [0; 16];
        both.readable().await;
        let (len, from) = both.receive(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&b"to v6"[..], four.local_addr().unwrap()));
        assert!(both.send(from, b"back"));
        four.readable().await;
        assert_eq!(four.receive(&mut buffer), Some((4, to)));
        assert!(!four.send("[::1]:1".parse().unwrap(), b"x"), "no way from IPv4 to IPv6");
    }

    #[tokio::test]
    async fn a_datagram_longer_than_the_buffer_is_cut_and_the_next_one_is_whole() {
        let [one, two] =
            [(); 2].map(|()| Socket::new(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap());
        let to = two.local_addr().unwrap();
        assert!(one.send(to, &[1; 100]) && one.send(to, &[2; 8]));
        two.readable().await;
        let mut buffer = [0; 10];
        assert_eq!(two.receive(&mut buffer).unwrap().0, 10);
        assert_eq!(two.receive(&mut buffer).unwrap().0, 8);
        assert_eq!(two.receive(&mut buffer), None);
    }
}
