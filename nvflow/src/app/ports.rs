//! What ports are registered for, at IANA: a guess, where the octets do not tell.

use nvcapture::wire::protocol;

/// The services that are usual among servers, by port, with whether TCP and UDP are meant; their names are IANA's.
const SERVICES: &[(u16, bool, bool, &str)] = &[
    (20, true, false, "ftp-data"),
    (21, true, false, "ftp"),
    (22, true, false, "ssh"),
    (23, true, false, "telnet"),
    (25, true, false, "smtp"),
    (49, true, true, "tacacs"),
    (53, true, true, "domain"),
    (67, false, true, "bootps"),
    (68, false, true, "bootpc"),
    (69, false, true, "tftp"),
    (80, true, true, "http"),
    (88, true, true, "kerberos"),
    (110, true, false, "pop3"),
    (111, true, true, "sunrpc"),
    (123, false, true, "ntp"),
    (135, true, true, "epmap"),
    (137, true, true, "netbios-ns"),
    (138, true, true, "netbios-dgm"),
    (139, true, true, "netbios-ssn"),
    (143, true, false, "imap"),
    (161, true, true, "snmp"),
    (162, true, true, "snmptrap"),
    (179, true, false, "bgp"),
    (389, true, true, "ldap"),
    (443, true, true, "https"),
    (445, true, true, "microsoft-ds"),
    (464, true, true, "kpasswd"),
    (465, true, false, "submissions"),
    (500, false, true, "isakmp"),
    (502, true, true, "mbap"),
    (514, false, true, "syslog"),
    (515, true, false, "printer"),
    (546, false, true, "dhcpv6-client"),
    (547, false, true, "dhcpv6-server"),
    (548, true, false, "afpovertcp"),
    (554, true, true, "rtsp"),
    (587, true, false, "submission"),
    (631, true, true, "ipp"),
    (636, true, true, "ldaps"),
    (853, true, true, "domain-s"),
    (873, true, true, "rsync"),
    (989, true, false, "ftps-data"),
    (990, true, false, "ftps"),
    (993, true, false, "imaps"),
    (995, true, false, "pop3s"),
    (1080, true, true, "socks"),
    (1194, true, true, "openvpn"),
    (1433, true, true, "ms-sql-s"),
    (1701, false, true, "l2f"),
    (1812, false, true, "radius"),
    (1813, false, true, "radius-acct"),
    (1883, true, true, "mqtt"),
    (1900, false, true, "ssdp"),
    (2049, true, true, "nfs"),
    (2379, true, false, "etcd-client"),
    (2380, true, false, "etcd-server"),
    (3260, true, true, "iscsi-target"),
    (3306, true, true, "mysql"),
    (3389, true, true, "ms-wbt-server"),
    (3478, true, true, "stun"),
    (4317, true, false, "opentelemetry"),
    (4369, true, true, "epmd"),
    (4500, false, true, "ipsec-nat-t"),
    (4739, true, true, "ipfix"),
    (4789, false, true, "vxlan"),
    (5060, true, true, "sip"),
    (5061, true, true, "sips"),
    (5222, true, false, "xmpp-client"),
    (5269, true, false, "xmpp-server"),
    (5349, true, true, "stuns"),
    (5353, false, true, "mdns"),
    (5355, true, true, "llmnr"),
    (5432, true, true, "postgresql"),
    (5671, true, true, "amqps"),
    (5672, true, true, "amqp"),
    (5900, true, true, "rfb"),
    (6081, false, true, "geneve"),
    (6343, false, true, "sflow"),
    (6379, true, false, "redis"),
    (6514, true, true, "syslog-tls"),
    (8080, true, true, "http-alt"),
    (8883, true, true, "secure-mqtt"),
    (9418, true, true, "git"),
    (11211, true, true, "memcache"),
    (27017, true, false, "mongodb"),
];

/// All names, in the order of the list.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SERVICES.iter().map(|service| service.3)
}

/// The place in the list of what `port` of `protocol` is registered for.
pub(super) fn place(protocol: u8, port: u16) -> Option<usize> {
    let place = SERVICES
        .binary_search_by_key(&port, |service| service.0)
        .ok()?;
    let (_, tcp, udp, _) = SERVICES[place];
    let is_meant = match protocol {
        protocol::TCP => tcp,
        protocol::UDP => udp,
        _ => false,
    };
    is_meant.then_some(place)
}

/// The service that `port` of `protocol` (6 or 17) is registered for at IANA, of those that are usual.
///
/// Who speaks what is not told by a port: it is a guess.
pub fn registered_service(protocol: u8, port: u16) -> Option<&'static str> {
    place(protocol, port).map(|place| SERVICES[place].3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_found_by_their_port() {
        assert!(SERVICES.is_sorted_by_key(|service| service.0));
        for (port, tcp, udp, name) in SERVICES {
            assert_eq!(registered_service(6, *port), tcp.then_some(*name));
            assert_eq!(registered_service(17, *port), udp.then_some(*name));
        }
        assert_eq!(registered_service(6, 40_000), None);
        assert_eq!(registered_service(132, 80), None);
    }
}
