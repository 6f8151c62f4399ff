//! The demo's traffic: a real web server, a real name server, and a client of both.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long the client waits for an answer before it gives up.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a server waits before it looks whether it should end.
const SLICE: Duration = Duration::from_millis(50);

/// The page that the web server gives.
pub(super) const PAGE: &[u8] = b"<!doctype html>\n<title>nvcli demo</title>\n<p>It works, and nobody noticed.</p>\n";

/// Answers every HTTP request with [`PAGE`], one connection at a time, until told to stop.
pub(super) fn serve_pages(listener: &TcpListener, stop: &AtomicBool) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            // A client that goes away in the middle is no reason to end.
            Ok((stream, _)) => drop(answer_page(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn answer_page(stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    // The request's head ends with an empty line; none of ours has a body.
    while reader.by_ref().take(8192).read_line(&mut line)? > 2 {
        line.clear();
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        PAGE.len()
    );
    let mut stream = reader.into_inner();
    stream.write_all(&[head.as_bytes(), PAGE].concat())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // Until the client has closed too, so that the connection ends on both sides.
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

/// Fetches the page once; the error says what came instead.
pub(super) fn fetch_page(from: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&from, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web.demo\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer.starts_with(b"HTTP/1.1 200 ") && answer.ends_with(PAGE) {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the web server's answer is not its page"))
    }
}

/// Answers every DNS query for an address with `answer`, until told to stop.
pub(super) fn serve_names(socket: &UdpSocket, answer: Ipv4Addr, stop: &AtomicBool) -> io::Result<()> {
    socket.set_read_timeout(Some(SLICE))?;
    let mut buffer = [0; 512];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((len, from)) => {
                if let Some(response) = response(&buffer[..len], answer) {
                    socket.send_to(&response, from)?;
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Octets of a DNS header.
const HEADER: usize = 12;

/// A query for the address of `name` (RFC 1035): one question, type A, class IN.
fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    // Recursion desired; one question.
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).unwrap_or(63));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

/// The answer to a query: the question again, and one address.
fn response(query: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let mut message = query.get(..HEADER)?.to_vec();
    // Response, recursion available; one answer.
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[6..8].copy_from_slice(&[0, 1]);
    message.extend(query.get(HEADER..)?);
    // The name is the one at offset 12; type A, class IN, 60 seconds, four octets.
    message.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    message.extend(address.octets());
    Some(message)
}

/// Asks `server` for the address of `name`.
pub(super) fn look_up(server: SocketAddr, id: u16, name: &str) -> io::Result<Ipv4Addr> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(server)?;
    socket.send(&query(id, name))?;
    let mut buffer = [0; 512];
    let len = socket.recv(&mut buffer)?;
    let octets: Option<[u8; 4]> = buffer[..len].last_chunk().copied();
    match octets.filter(|_| len > HEADER && buffer[..2] == id.to_be_bytes() && buffer[7] == 1) {
        Some(octets) => Ok(octets.into()),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "that is no answer to the question")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_asked_for_and_answered() {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let server = socket.local_addr().expect("bound");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| serve_names(&socket, Ipv4Addr::new(192, 0, 2, 7), &stop).expect("serves"));
            let answer = look_up(server, 77, "web.demo");
            stop.store(true, Ordering::Relaxed);
            assert_eq!(answer.expect("an answer"), Ipv4Addr::new(192, 0, 2, 7));
        });
    }

    #[test]
    fn a_page_is_fetched() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let server = listener.local_addr().expect("bound");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| serve_pages(&listener, &stop).expect("serves"));
            let fetched = [fetch_page(server), fetch_page(server)];
            stop.store(true, Ordering::Relaxed);
            assert!(fetched.iter().all(Result::is_ok), "{fetched:?}");
        });
    }

    #[test]
    fn a_query_is_what_rfc_1035_says() {
        assert_eq!(query(0x0102, "a.bc"), b"\x01\x02\x01\0\0\x01\0\0\0\0\0\0\x01a\x02bc\0\0\x01\0\x01");
        assert_eq!(response(b"short", Ipv4Addr::LOCALHOST), None);
    }
}
