// Swipes on touch screens: towards the better clip; across, equal and can't tell. What it will mean is shown before
// the finger leaves, so that one can still turn back.

const FAR = 56; // pixels
const BESIDE = { left: "left", right: "right", up: "equal", down: "skip" };
const STACKED = { up: "left", down: "right", right: "equal", left: "skip" };

/** choose(choice) is called when the finger leaves the stage; what a button of the view says is what the hint says. */
export function swipes(view, stage, choose) {
  const hint = document.getElementById("swipe-hint");
  let from = null;
  let about = null; // { choice, says }

  const meaning = (direction) => {
    if (stage.dataset.ready !== "true") return null;
    const choice = (stage.classList.contains("stacked") ? STACKED : BESIDE)[direction];
    const words = view.querySelector(`.choices [data-choice=${choice}] > span`);
    return { choice, says: words.innerText.trim() };
  };

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
