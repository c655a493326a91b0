// Which key does what, and the list of them that `?` shows.

const KEYS = [
  { keys: ["ArrowLeft"], caps: "←", does: "left", says: "left is better" },
  { keys: ["ArrowRight"], caps: "→", does: "right", says: "right is better" },
  { keys: ["ArrowUp"], caps: "↑", does: "equal", says: "equally good" },
  { keys: ["ArrowDown"], caps: "↓", does: "skip", says: "can’t tell" },
  { keys: ["Backspace", "z"], caps: "Z", does: "undo", says: "take the last label back" },
  { keys: [" "], caps: "Space", does: "play", says: "pause, play" },
  { keys: [","], caps: ",", does: "back", says: "one frame back" },
  { keys: ["."], caps: ".", does: "on", says: "one frame on" },
  { keys: ["1"], caps: "1", does: "quarter", says: "quarter speed" },
  { keys: ["2"], caps: "2", does: "half", says: "half speed" },
  { keys: ["3"], caps: "3", does: "full", says: "full speed" },
  { keys: ["r"], caps: "R", does: "restart", says: "from the first frame" },
  { keys: ["?"], caps: "?", does: "help", says: "this list" },
];

const ACTIONS = new Map(KEYS.flatMap(({ keys, does }) => keys.map((key) => [key, does])));
const MAY_REPEAT = new Set(["back", "on"]); // a long press on any other key counts once

/** Calls act(what, strong) for each key that means something here. */
export function listen(act) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    if (event.target.closest?.("input:not([type=range]), textarea, select, dialog")) return;
    if ((event.key === " " || event.key === "Enter") && event.target.closest?.("button, a, video")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const what = ACTIONS.get(key);
    if (!what) return;
    event.preventDefault(); // arrows scroll, Backspace goes back
    if (event.repeat && !MAY_REPEAT.has(what)) return;
    act(what, event.shiftKey);
  });
}

/** Fills the list in the dialog. */
export function describe(list) {
  for (const { caps, says } of KEYS) {
    const term = document.createElement("dt");
    const cap = document.createElement("kbd");
    cap.textContent = caps;
    term.append(cap);
    const text = document.createElement("dd");
    text.textContent = says;
    list.append(term, text);
  }
}
