//! `nvcli completions`: the shell's completion script, with names of containers where a target is wanted.

use std::io::{self, Write as _};

use clap::{Args, Command, CommandFactory as _};
use clap_complete::Shell;

use crate::args::{Cli, Completions};
use crate::container::Engine;
use crate::exit::{CliError, Result};

/// Commands whose arguments are names of containers, and whether only attached ones will do.
const NAMING: [(&str, bool); 5] = [
    ("attach", false),
    ("detach", true),
    ("capture", true),
    ("dump", true),
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
    io::stdout()
        .write_all(script(args.shell).as_bytes())
        .map_err(|source| CliError::output(&source))
}

fn script(shell: Shell) -> String {
    let all = Cli::command();
    // Hidden ones are offered otherwise.
    let shown = all.get_subcommands().filter(|one| !one.is_hide_set());
    let mut command = Command::new("nvcli")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .args(all.get_arguments())
        .subcommands(shown);
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "nvcli", &mut script);
    with_names(shell, &String::from_utf8_lossy(&script))
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
    [[ $COMP_CWORD -gt 1 ]] || return 0
    # From the line: COMP_WORDS has netns:blue in three words, as COMP_WORDBREAKS says.
    local line=\"${{COMP_LINE:0:COMP_POINT}}\" names
    local word=\"${{line##*[[:space:]]}}\"
    local before=\"${{line%\"$word\"}}\"
    before=\"${{before%\"${{before##*[![:space:]]}}\"}}\"
    case \"${{COMP_WORDS[1]}}\" in
{}        flows)
            [[ $word == --container=* || ${{before##*[[:space:]]}} == @(-c|--container) ]] || return 0
            word=\"${{word#--container=}}\" COMPREPLY=() names=$(nvcli names --attached 2>/dev/null) ;;
        *) return 0 ;;
    esac
    [[ $word != -* ]] || return 0
    # What was found before is for the last part of the word.
    [[ $word == \"$2\" ]] || COMPREPLY=()
    COMPREPLY+=($(compgen -W \"$names\" -- \"$word\"))
    # Only what is behind the last colon takes the place of what is there.
    [[ $COMP_WORDBREAKS != *:* ]] || COMPREPLY=(\"${{COMPREPLY[@]#\"${{word%\"${{word##*:}}\"}}\"}}\")
}}
complete -F _nvcli_named -o nosort -o bashdefault -o default nvcli
",
            cases(&|command, attached| format!(
                "        {command}) names=$(nvcli names{attached} 2>/dev/null) ;;\n"
            ))
        ),
        Shell::Zsh => {
            // The positional argument of a target, and the container of an option, are the only ones of this kind.
            let named: String = script
                .lines()
                .map(|line| {
                    let is_target = line.contains("::target")
                        || line.contains(":targets --")
                        || line.contains(":CONTAINER:");
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
            "{script}{}complete -c nvcli -n \"__fish_seen_subcommand_from flows\" -s c -l container -x -a \"(nvcli names --attached 2>/dev/null)\"\n",
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
        let script = script(Shell::Bash);
        let complete = |words: &[&str]| {
            let line = format!(
                "{script}
nvcli() {{ [ \"$*\" = 'names --attached' ] && printf 'web-1\\nnetns:wan\\n' || printf 'web-1\\nweb-2\\n'; }}
COMP_WORDBREAKS=' =:'; COMP_LINE='{}'; COMP_POINT=${{#COMP_LINE}}
COMP_WORDS=({}); COMP_CWORD={}; COMPREPLY=()
_nvcli_named nvcli \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"
echo \"${{COMPREPLY[*]}}\"",
                words.join(" ").replace(" : ", ":").replace(" = ", "="),
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
        let of_option = [
            &["nvcli", "flows", "-c", "we"][..],
            &["nvcli", "flows", "--container", "=", "we"],
        ];
        for words in [&["nvcli", "dump", "we"][..]].iter().chain(&of_option) {
            assert_eq!(complete(words), "web-1\n", "{words:?}");
        }
        assert_eq!(complete(&["nvcli", "flows", "we"]), "\n");
        // What stands before the colon is there already.
        for words in [
            &["nvcli", "detach", "netns", ":", "w"][..],
            &["nvcli", "detach", "netns", ":", ""],
            &["nvcli", "flows", "-c", "netns", ":", "w"],
        ] {
            assert_eq!(complete(words), "wan\n", "{words:?}");
        }
        let commands = complete(&["nvcli", ""]);
        assert!(
            commands.contains("detach") && !commands.contains("names"),
            "{commands}"
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
            (Shell::Zsh, ":CONTAINER:_nvcli_names'"),
            (Shell::Fish, "(nvcli names --attached 2>/dev/null)"),
            (
                Shell::Fish,
                "flows\" -s c -l container -x -a \"(nvcli names",
            ),
        ] {
            let script = script(shell);
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
