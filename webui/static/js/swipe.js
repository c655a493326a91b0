// Swipes on touch screens: towards the better clip; across, equal and can't tell. What it will mean is shown before
// the finger leaves, so that one can still turn back.

const FAR = 56; // pixels

/** meaning(direction) -> { choice, says } for left, right, up, down; choose(choice) when the finger leaves. */
export function swipes(stage, hint, meaning, choose) {
  let from = null;
  let about = null;

  const directionOf = (event) => {
    const [x, y] = [event.clientX - from.x, event.clientY - from.y];
    if (Math.max(Math.abs(x), Math.abs(y)) < FAR) return null;
    return Math.abs(x) > Math.abs(y) ? (x < 0 ? "left" : "right") : y < 0 ? "up" : "down";
  };
  const end = () => {
    from = about = null;
    hint.hidden = true;
  };

  stage.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "mouse") return;
    if (from) end(); // a second finger: no swipe
    else if (event.isPrimary) from = { x: event.clientX, y: event.clientY, id: event.pointerId };
  });
  stage.addEventListener("pointermove", (event) => {
    if (!from || event.pointerId !== from.id) return;
    const direction = directionOf(event);
    about = direction && meaning(direction);
    hint.hidden = !about;
    if (about) {
      hint.textContent = about.says;
      hint.dataset.choice = about.choice;
    }
  });
  stage.addEventListener("pointerup", (event) => {
    if (!from || event.pointerId !== from.id) return;
    const { choice } = about ?? {};
    end();
    if (choice) choose(choice);
  });
  stage.addEventListener("pointercancel", end);
}
