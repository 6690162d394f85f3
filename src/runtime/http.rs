//! stub
pub(super) async fn serve(_: tokio::net::TcpListener, _: tokio::sync::mpsc::Sender<super::Command>) {}
