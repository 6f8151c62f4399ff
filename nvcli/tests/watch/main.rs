//! `nvcli flows --watch` as people see it: the program in a terminal (tmux), containers of a lab, real traffic between them.
//!
//! What is seen is compared with the files in `snapshots/`, after what cannot be the same twice was masked (`screen::Mask`).
//! `NV_TESTS_UPDATE=1` writes them anew.

#[path = "../../../nvnet/tests/common/mod.rs"]
mod common;
mod health;
mod hostile;
mod lines;
mod screen;
mod stage;

use common::{Need, ensure, privileged, same, sh};
use libtest_mimic::{Arguments, Failed};

use crate::screen::{Mask, Screen};
use crate::stage::{NVCLI, Stage, Traffic};

const ALL: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2, Need::Tmux];
const WITHOUT_TMUX: &[Need] = &[Need::Netns, Need::Ebpf, Need::Iproute2];
const NARROW: (u16, u16) = (80, 24);
const WIDE: (u16, u16) = (200, 50);

type Test = fn() -> Result<(), Failed>;

fn main() {
    let on_a_terminal: [(&str, Test); 10] = [
        ("a_session_at_80x24", || a_session(NARROW)),
        ("a_session_at_200x50", || a_session(WIDE)),
        (
            "every_way_out_gives_the_terminal_back",
            every_way_out_gives_the_terminal_back,
        ),
        (
            "it_can_be_suspended_and_resized",
            it_can_be_suspended_and_resized,
        ),
        ("no_color_is_respected", no_color_is_respected),
        ("who_is_not_seen_is_told", health::who_is_not_seen_is_told),
        (
            "one_direction_alone_is_told",
            health::one_direction_alone_is_told,
        ),
        ("what_is_dropped_is_told", health::what_is_dropped_is_told),
        (
            "hostile_text_is_shown_harmless",
            hostile::hostile_text_is_shown_harmless,
        ),
        (
            "names_beyond_measure_fit_the_screen",
            hostile::names_beyond_measure_fit_the_screen,
        ),
    ];
    let without_one: [(&str, Test); 2] = [
        (
            "without_a_terminal_lines_tell_it",
            lines::without_a_terminal_lines_tell_it,
        ),
        (
            "metrics_and_lists_have_no_control_character",
            hostile::metrics_and_lists_have_no_control_character,
        ),
    ];
    let trials = on_a_terminal
        .into_iter()
        .map(|(name, test)| privileged(name, ALL, test))
        .chain(
            without_one
                .into_iter()
                .map(|(name, test)| privileged(name, WITHOUT_TMUX, test)),
        );
    let trials = trials.collect();
    let mut arguments = Arguments::from_args();
    // Each has a lab and a terminal of its own; two at a time are enough for a small machine.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    libtest_mimic::run(&arguments, trials).exit();
}

/// Neighbours and routers are looked for now and then, which no two runs do alike.
const NO_CHATTER: &str = "--protocol tcp --protocol udp";

/// Of all pages, as somebody sees them who looks around.
fn a_session((width, height): (u16, u16)) -> Result<(), Failed> {
    let stage = Stage::new()?;
    let screen = Screen::view(&stage, (width, height), NO_CHATTER)?;
    let agrees = |page: &str, rule| screen.agrees(&format!("{width}x{height}/{page}"), rule);
    agrees("silent", Mask::Numbers)?;
    // Seen from their first frame on.
    let _traffic = Traffic::usual(&stage)?;
    // By server: an order that does not depend on how much went through.
    screen.keys("S S S")?;
    agrees("connections", Mask::Numbers)?;
    for group in ["containers", "services", "conversations", "remotes"] {
        screen.keys("g")?;
        agrees(&format!("by-{group}"), Mask::Numbers)?;
    }
    screen.keys("g")?;

    screen.keys("/ c l Space : 8 0")?;
    agrees("filter", Mask::Numbers)?;
    screen.keys("Enter Enter")?;
    agrees("details", Mask::Values)?;
    screen.keys("Escape")?;
    screen.once("the list", |text| {
        !text.contains("flowStartMicroseconds") && text.contains("/cl :80")
    })?;
    screen.keys("Escape")?;
    agrees("connections", Mask::Numbers)?;

    screen.keys("2")?;
    agrees("containers", Mask::Numbers)?;
    // Follows the first one, and no longer.
    screen.keys("Enter")?;
    agrees("followed", Mask::Numbers)?;
    screen.keys("f")?;
    agrees("connections", Mask::Numbers)?;
    screen.keys("3")?;
    agrees("health", Mask::Numbers)?;
    screen.keys("'?'")?;
    agrees("help", Mask::Nothing)?;
    screen.keys("q")?;
    screen.shows("ended with 0").map(drop)
}

fn every_way_out_gives_the_terminal_back() -> Result<(), Failed> {
    let stage = Stage::new()?;
    let _traffic = Traffic::usual(&stage)?;
    for way in ["q", "C-c", "TERM", "INT", "HUP"] {
        let screen = Screen::view_between(
            &stage,
            NARROW,
            "",
            (
                "stty -g > before; echo a line before",
                "echo ended with $?; stty -g > after; echo done",
            ),
        )?;
        screen.shows("CLIENT")?;
        same(
            "the other screen",
            screen.told("#{alternate_on} #{cursor_flag}")?,
            "1 0".into(),
        )?;
        match way {
            "q" | "C-c" => screen.keys(way)?,
            signal => sh(&format!("kill -{signal} {}", screen.pid()?)).map(drop)?,
        }
        let after = screen.shows("done")?;
        ensure(
            after.contains("a line before"),
            format!("{way}: what was there is gone:\n{after}"),
        )?;
        ensure(after.contains("ended with 0"), format!("{way}:\n{after}"))?;
        ensure(
            !after.contains("CLIENT"),
            format!("{way}: the view is left:\n{after}"),
        )?;
        same(
            way,
            screen.told("#{alternate_on} #{cursor_flag} #{mouse_any_flag} #{wrap_flag}")?,
            "0 1 0 1".into(),
        )?;
        let settings = |name: &str| std::fs::read_to_string(screen.file(name));
        same(way, settings("before")?, settings("after")?)?;
    }
    Ok(())
}

fn it_can_be_suspended_and_resized() -> Result<(), Failed> {
    let stage = Stage::new()?;
    let screen = Screen::shell(&stage, NARROW)?;
    screen.keys(&format!("'{NVCLI} -q flows --watch {NO_CHATTER}' Enter"))?;
    screen.shows("no connection yet")?;
    let _traffic = Traffic::usual(&stage)?;
    screen.keys("S S S")?;
    screen.agrees("80x24/connections", Mask::Numbers)?;
    screen.keys("C-z")?;
    screen.shows("Stopped")?;
    same(
        "suspended",
        screen.told("#{alternate_on} #{cursor_flag}")?,
        "0 1".into(),
    )?;
    screen.keys("fg Enter")?;
    // It is what it would have been, whatever it was before.
    screen.agrees("80x24/connections", Mask::Numbers)?;
    screen.tmux("resize-window -x 200 -y 50")?;
    screen.agrees("200x50/connections", Mask::Numbers)?;
    screen.tmux("resize-window -x 40 -y 10")?;
    screen.once("few columns", |text| {
        text.contains("CLIENT") && !text.contains("RTT")
    })?;
    screen.tmux("resize-window -x 20 -y 5")?;
    screen.shows("nvcli needs")?;
    screen.tmux("resize-window -x 80 -y 24")?;
    screen.agrees("80x24/connections", Mask::Numbers)?;
    screen.keys("q")?;
    screen.shows("ready:").map(drop)
}

fn no_color_is_respected() -> Result<(), Failed> {
    let stage = Stage::new()?;
    let _traffic = Traffic::usual(&stage)?;
    let is_colour =
        |code: &str| matches!(code.parse(), Ok(30..=38 | 40..=48 | 90..=97 | 100..=107_u8));
    let colours = |text: &str| {
        text.split("\x1b[")
            .skip(1)
            .filter_map(|rest| rest.split_once('m').map(|(codes, _)| codes))
            .flat_map(|codes| codes.split(';'))
            .any(is_colour)
    };
    for (environment, coloured) in [("", true), ("NO_COLOR=1", false)] {
        let screen = Screen::run(
            &stage,
            NARROW,
            environment,
            &format!("{NVCLI} -q flows --watch; sleep 1000"),
        )?;
        screen.shows("web-1:80")?;
        let text = screen.tmux("capture-pane -e -p")?;
        same(environment, colours(&text), coloured)?;
    }
    Ok(())
}
