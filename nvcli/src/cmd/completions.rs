//! `nvcli completions`: the shell's completion script, with names of containers where a target is wanted.

use std::io::{self, Write as _};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use crate::args::{Cli, Completions};
use crate::container::Engine;
use crate::exit::{CliError, Result};

/// Commands whose arguments are names of containers, and whether only attached ones will do.
const NAMING: [(&str, bool); 4] = [
    ("attach", false),
    ("detach", true),
    ("capture", true),
    ("doctor", false),
];

/// Print names that a target can have, one a line: for completion
#[derive(Args, Debug)]
pub(crate) struct Names {
    /// Only those that are attached
    #[arg(long)]
    pub(crate) attached: bool,
}

/// Prints the script.
pub(crate) fn run(args: &Completions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "nvcli", &mut script);
    let script = with_names(args.shell, &String::from_utf8_lossy(&script));
    io::stdout()
        .write_all(script.as_bytes())
        .map_err(|source| CliError::output(&source))
}

/// Prints the names. What cannot be asked is left out: nobody wants an error in the middle of a line.
pub(crate) fn names(args: &Names) -> Result<()> {
    let mut names: Vec<String> = Vec::new();
    if let Ok(host) = nvnet::Netns::current() {
        let attached = nvnet::list(&host).unwrap_or_default();
        names.extend(attached.into_iter().map(|a| a.workload.name));
    }
    if !args.attached
        && let Ok(engine) = Engine::connect()
    {
        names.extend(engine.all_names().unwrap_or_default());
    }
    names.sort();
    names.dedup();
    let mut out = io::stdout().lock();
    for name in names.iter().filter(|name| is_plain(name)) {
        writeln!(out, "{name}").map_err(|source| CliError::output(&source))?;
    }
    out.flush().map_err(|source| CliError::output(&source))
}

/// Whether a shell takes a name as one word and nothing else.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|octet| octet.is_ascii_alphanumeric() || b"_.-:/".contains(&octet))
}

/// `script`, which asks nvcli for names where a target is wanted.
fn with_names(shell: Shell, script: &str) -> String {
    let cases = |line: &dyn Fn(&str, &str) -> String| -> String {
        NAMING
            .iter()
            .map(|(command, attached)| line(command, if *attached { " --attached" } else { "" }))
            .collect()
    };
    match shell {
        Shell::Bash => format!(
            "{script}
_nvcli_named() {{
    _nvcli \"$@\"
    local word=\"${{COMP_WORDS[COMP_CWORD]}}\" names
    [[ $COMP_CWORD -gt 1 && $word != -* ]] || return 0
    case \"${{COMP_WORDS[1]}}\" in
{}        *) return 0 ;;
    esac
    COMPREPLY+=($(compgen -W \"$names\" -- \"$word\"))
}}
complete -F _nvcli_named -o nosort -o bashdefault -o default nvcli
",
            cases(&|command, attached| format!(
                "        {command}) names=$(nvcli names{attached} 2>/dev/null) ;;\n"
            ))
        ),
        Shell::Zsh => {
            // The positional argument of a target is the only one of this kind.
            let named: String = script
                .lines()
                .map(|line| {
                    let is_target = line.contains("::target") || line.contains(":targets --");
                    if is_target {
                        line.replace(":_default", ":_nvcli_names")
                    } else {
                        line.to_owned()
                    }
                })
                .map(|line| line + "\n")
                .collect();
            format!(
                "{named}\n_nvcli_names() {{\n    compadd -- ${{(f)\"$(nvcli names 2>/dev/null)\"}}\n}}\n"
            )
        }
        Shell::Fish => format!(
            "{script}{}",
            cases(&|command, attached| format!(
                "complete -c nvcli -n \"__fish_seen_subcommand_from {command}\" -f -a \"(nvcli names{attached} 2>/dev/null)\"\n"
            ))
        ),
        _ => script.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bash_asks_for_names_where_a_target_is_wanted() {
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "nvcli", &mut script);
        let script = with_names(Shell::Bash, &String::from_utf8(script).unwrap());
        let complete = |words: &[&str]| {
            let line = format!(
                "{script}
nvcli() {{ [ \"$*\" = 'names --attached' ] && echo web-1 || printf 'web-1\\nweb-2\\n'; }}
COMP_WORDS=({}); COMP_CWORD={}; COMPREPLY=()
_nvcli_named nvcli \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"
echo \"${{COMPREPLY[*]}}\"",
                words
                    .iter()
                    .map(|word| format!("'{word}'"))
                    .collect::<Vec<_>>()
                    .join(" "),
                words.len() - 1
            );
            let output = std::process::Command::new("bash")
                .args(["-c", &line])
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let all = complete(&["nvcli", "attach", "we"]);
        assert!(all.contains("web-1 web-2"), "{all}");
        let attached = complete(&["nvcli", "detach", "we"]);
        assert!(
            attached.contains("web-1") && !attached.contains("web-2"),
            "{attached}"
        );
        let options = complete(&["nvcli", "detach", "--a"]);
        assert!(
            options.contains("--all") && !options.contains("web"),
            "{options}"
        );
    }

    #[test]
    fn zsh_and_fish_do_too() {
        for (shell, asks) in [
            (Shell::Zsh, ":_nvcli_names'"),
            (Shell::Fish, "(nvcli names --attached 2>/dev/null)"),
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "nvcli", &mut script);
            let script = with_names(shell, &String::from_utf8(script).unwrap());
            assert!(script.contains(asks), "{shell}: {script}");
        }
        assert!(
            is_plain("netns:/run/x.y_z-1")
                && !is_plain("a b")
                && !is_plain("$(x)")
                && !is_plain("")
        );
    }
}
