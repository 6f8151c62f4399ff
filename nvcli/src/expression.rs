//! Which frames are read: an expression of tcpdump's, for the ring or for a file.

use nvcapture::filter::{self, Filter, Place, Program};
use nvcapture::{BpfInsn, Frame, LinkType};

use crate::escape;
use crate::exit::CliError;

/// What a program answers for a frame that is wanted; the ring's own snap length still applies.
const WHOLE: u32 = u32::MAX;

/// The program for nv-br.
pub(crate) fn live(expression: &str) -> Result<Vec<BpfInsn>, CliError> {
    Filter::new(LinkType::ETHERNET, WHOLE)
        .at(Place::Marked)
        .program(expression)
        .map(Program::into_instructions)
        .map_err(|error| {
            let told = wrong(expression, &error);
            // Other commands take a container in this place.
            if error.position() == 0 && !expression.contains(char::is_whitespace) {
                return told.remedy(format!(
                    "nvcli flows --container {}; or a filter: docs/filters.md, `man pcap-filter`",
                    escape::shell(expression)
                ));
            }
            told
        })
}

/// The programs for files: one for each link type that occurs.
#[derive(Debug)]
pub(crate) struct OfFiles {
    expression: String,
    programs: Vec<(LinkType, Program)>,
    /// Frames that were left out.
    pub(crate) left_out: u64,
    failed: Option<CliError>,
}

impl OfFiles {
    /// Checks the words; what a file's link type does not have shows when the file is read.
    pub(crate) fn new(expression: String) -> Result<Self, CliError> {
        Filter::new(LinkType::ETHERNET, WHOLE)
            .program(&expression)
            .map_err(|error| wrong(&expression, &error))?;
        Ok(Self {
            expression,
            programs: Vec::new(),
            left_out: 0,
            failed: None,
        })
    }

    /// Whether the frame is wanted; none is after a failure.
    pub(crate) fn admits(&mut self, frame: &Frame<'_>) -> bool {
        let link_type = frame.meta().link_type;
        let known = self
            .programs
            .iter()
            .find(|(known, _)| *known == link_type)
            .map(|(_, program)| program.admits(frame));
        let admits = match known {
            Some(admits) => admits,
            None if self.failed.is_some() => false,
            None => {
                let filter = Filter::new(link_type, WHOLE).at(Place::File);
                match filter.program(&self.expression) {
                    Ok(program) => {
                        let admits = program.admits(frame);
                        self.programs.push((link_type, program));
                        admits
                    }
                    Err(error) => {
                        self.failed = Some(wrong(&self.expression, &error));
                        false
                    }
                }
            }
        };
        self.left_out += u64::from(!admits);
        admits
    }

    /// Why a frame could not be asked, if there was one.
    pub(crate) fn failure(&mut self) -> Option<CliError> {
        self.failed.take()
    }
}

/// The expression, and what is wrong under its place.
fn wrong(expression: &str, error: &filter::Error) -> CliError {
    let told = CliError::usage("the filter is not understood");
    let before = expression.get(..error.position()).unwrap_or_default();
    // A place can be pointed at where each character is as wide as another.
    let told = if expression.len() <= 160 && expression.bytes().all(|b| (b' '..0x7f).contains(&b)) {
        told.because(expression)
            .because(format!("{:1$}^ {2}", "", before.len(), error.what()))
    } else {
        told.because(error)
    };
    told.remedy("docs/filters.md, or `man pcap-filter`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn the_place_is_pointed_at() {
        let error = live("tcp prt 443").unwrap_err();
        let text = error.to_string();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "  because: tcp prt 443");
        assert!(lines[2].starts_with("  because:     ^ expected"), "{text}");
        assert_eq!(error.exit(), Exit::Usage);
    }

    #[test]
    fn a_container_in_the_place_of_a_filter_is_told_where_it_belongs() {
        let text = live("netns:c d").unwrap_err().to_string();
        assert!(!text.contains("--container"), "{text}");
        for (said, told) in [
            ("web-1", "--container web-1;"),
            ("a$b", "--container 'a$b';"),
        ] {
            let text = live(said).unwrap_err().to_string();
            assert!(text.contains(told), "{text}");
        }
        let text = live("tcp and").unwrap_err().to_string();
        assert!(!text.contains("--container"), "{text}");
    }

    #[test]
    fn a_place_behind_wide_characters_is_told_by_number() {
        let text = live("tcp \u{5bb9}").unwrap_err().to_string();
        assert!(text.contains("at octet 4"), "{text}");
    }
}
