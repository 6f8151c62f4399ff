//! Who is who on nv-br: from the marks on frames and from addresses to the names of containers.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nvflow::FlowRecord;
use nvnet::{Attachment, Netns};

/// How old the kernel's list may be.
const FRESH: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    workload: Arc<str>,
    container_id: Option<String>,
    interface: Arc<str>,
}

/// The attached containers, as the kernel last told; one that is gone keeps its name until its id is used again.
#[derive(Debug)]
pub(crate) struct Names {
    host: Netns,
    read: Option<Instant>,
    attached: Vec<Attachment>,
    by_id: HashMap<u16, Known>,
    /// `None` where two containers have the same address, in networks of their own.
    by_address: HashMap<IpAddr, Option<Arc<str>>>,
}

impl Names {
    /// Reads the list.
    pub(crate) fn read(host: Netns) -> Result<Self, nvnet::Error> {
        let mut names = Self {
            host,
            read: None,
            attached: Vec::new(),
            by_id: HashMap::new(),
            by_address: HashMap::new(),
        };
        names.refresh()?;
        Ok(names)
    }

    /// Reads the list again if it is not fresh.
    pub(crate) fn refresh(&mut self) -> Result<(), nvnet::Error> {
        if self.read.is_some_and(|read| read.elapsed() < FRESH) {
            return Ok(());
        }
        self.read = Some(Instant::now());
        let attached = nvnet::list(&self.host)?;
        let same = attached.len() == self.attached.len()
            && attached.iter().zip(&self.attached).all(|(new, old)| {
                new.id == old.id && new.workload == old.workload && new.interface == old.interface
            });
        if same {
            return Ok(());
        }
        self.by_address.clear();
        for attachment in &attached {
            let workload: Arc<str> = attachment.workload.name.as_str().into();
            let known = Known {
                workload: Arc::clone(&workload),
                container_id: attachment.workload.container_id.clone(),
                interface: attachment.interface.as_str().into(),
            };
            self.by_id.insert(attachment.id.number(), known);
            for address in addresses(attachment) {
                let named = self
                    .by_address
                    .entry(address)
                    .or_insert_with(|| Some(Arc::clone(&workload)));
                if named.as_ref().is_some_and(|name| *name != workload) {
                    *named = None;
                }
            }
        }
        self.attached = attached;
        Ok(())
    }

    /// What is attached now.
    pub(crate) fn attached(&self) -> &[Attachment] {
        &self.attached
    }

    /// Writes into `record` whose it is.
    pub(crate) fn label(&self, record: &mut FlowRecord) {
        let Some(known) = record.observation_point.and_then(|id| self.by_id.get(&id)) else {
            return;
        };
        record.labels.workload = Some(Arc::clone(&known.workload));
        record.labels.interface = Some(Arc::clone(&known.interface));
        let peer = match record.vantage {
            Some(nvflow::Vantage::Egress) => record.destination.address,
            Some(nvflow::Vantage::Ingress) => record.source.address,
            None => return,
        };
        record.labels.peer_workload = self.by_address.get(&peer).cloned().flatten();
    }

    /// Whether the record is of a container that one of `wanted` names; of any when there are none.
    pub(crate) fn wanted(&self, record: &FlowRecord, wanted: &[String]) -> bool {
        let known = || record.observation_point.and_then(|id| self.by_id.get(&id));
        wanted.is_empty()
            || known().is_some_and(|known| {
                wanted
                    .iter()
                    .any(|name| is_called(name, &known.workload, known.container_id.as_deref()))
            })
    }
}

/// Whether `wanted` names the workload: by its name, or by the first digits of its container's id.
pub(crate) fn is_called(wanted: &str, name: &str, container_id: Option<&str>) -> bool {
    wanted == name || (!wanted.is_empty() && container_id.is_some_and(|id| id.starts_with(wanted)))
}

/// The addresses inside the container that tell it from others.
pub(crate) fn addresses(attachment: &Attachment) -> Vec<IpAddr> {
    let read = || -> Vec<IpAddr> {
        let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
            return Vec::new();
        };
        interfaces
            .filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
            })
            .filter(|address| match address {
                IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
                IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
            })
            .collect()
    };
    attachment
        .netns()
        .and_then(|netns| netns.run(read).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_called_by_name_or_by_the_beginning_of_its_id() {
        assert!(is_called("web-1", "web-1", None));
        assert!(is_called("4f5c", "web-1", Some("4f5c0e1b")));
        assert!(!is_called("web", "web-1", Some("4f5c0e1b")));
        assert!(!is_called("5c", "web-1", Some("4f5c0e1b")));
        assert!(!is_called("", "web-1", Some("4f5c0e1b")));
    }
}
