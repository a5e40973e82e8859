// Sliders move films, cursors and marks. The page reads without this: every picture then shows its first frame.
"use strict";
const UNIT = 1000, TRAIL = 6, FRAMES_A_SECOND = 12;

function decode(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Uint16Array(bytes.buffer);
}

// Numbers of one frame as places in the plot: a line has a height a point, dots have x and y.
function places(mark, frame) {
  const all = mark.numbers.subarray(frame * mark.count, (frame + 1) * mark.count);
  return Array.from(all, (v) => (v / 65535) * UNIT);
}

const line = (ys) => "M" + ys.map((y, i) => `${((i * UNIT) / (ys.length - 1)).toFixed(1)} ${(UNIT - y).toFixed(1)}`).join("L");

function dots(xy) {
  let path = "";
  for (let i = 0; i < xy.length; i += 2) path += `M${xy[i].toFixed(1)} ${(UNIT - xy[i + 1]).toFixed(1)}h0`;
  return path;
}

// Lines between two sets of dots; one across a seam of the box is left out.
function links(from, to) {
  let path = "";
  for (let i = 0; i < from.length; i += 2) {
    if (Math.abs(from[i] - to[i]) > UNIT / 2 || Math.abs(from[i + 1] - to[i + 1]) > UNIT / 2) continue;
    path += `M${from[i].toFixed(1)} ${(UNIT - from[i + 1]).toFixed(1)}L${to[i].toFixed(1)} ${(UNIT - to[i + 1]).toFixed(1)}`;
  }
  return path;
}

function readPlot(svg) {
  const marks = [...svg.querySelectorAll("path")].map((path) => ({
    path, kind: path.dataset.kind, count: Number(path.dataset.count), numbers: decode(path.dataset.numbers),
  }));
  const sets = marks.filter((mark) => mark.kind === "dots");
  return (frame) => {
    for (const mark of marks) {
      let path = "";
      if (mark.kind === "line") path = line(places(mark, frame));
      else if (mark.kind === "dots") path = dots(places(mark, frame));
      else if (mark.kind === "links") path = links(places(sets[0], frame), places(sets[1], frame));
      else for (let k = Math.max(1, frame - TRAIL + 1); k <= frame; k++) path += links(places(sets[0], k - 1), places(sets[0], k));
      mark.path.setAttribute("d", path);
    }
  };
}

function readPlayer(player) {
  const labels = player.dataset.labels.split("|");
  const slider = player.querySelector("input"), output = player.querySelector("output"), button = player.querySelector(".play");
  const plots = [...player.querySelectorAll(".axes svg")].map(readPlot);
  const films = [...player.querySelectorAll(".film img")], cursors = [...player.querySelectorAll(".cursor")];
  let timer = 0;

  function show(frame) {
    for (const film of films) {
      const { frames, step, pad } = film.dataset, own = Math.min(frame, frames - 1);
      film.style.transform = `translateY(${(-100 * (own * step + Number(pad))) / (frames * step)}%)`;
    }
    for (const cursor of cursors) cursor.style.left = `${(100 * frame) / (labels.length - 1)}%`;
    for (const plot of plots) plot(frame);
    if (!slider) return;
    slider.value = frame;
    slider.style.setProperty("--done", `${(100 * frame) / (labels.length - 1)}%`);
    slider.setAttribute("aria-valuetext", labels[frame]);
    output.textContent = labels[frame];
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    button.setAttribute("aria-pressed", "false");
  }
  function play() {
    if (timer) return;
    button.setAttribute("aria-pressed", "true");
    const slow = labels.length < 20 ? 8 : 1; // samples are looked at, times are run through
    timer = setInterval(() => show((Number(slider.value) + 1) % labels.length), (1000 * slow) / FRAMES_A_SECOND);
  }
  show(Number(player.dataset.start));
  if (!slider) return;
  slider.addEventListener("input", () => { player.dataset.touched = "yes"; stop(); show(Number(slider.value)); });
  button.addEventListener("click", () => { player.dataset.touched = "yes"; if (timer) stop(); else play(); });
  // A trajectory plays while it is seen, until somebody touches it.
  new IntersectionObserver(([entry]) => {
    if (!entry.isIntersecting) stop();
    else if (player.matches(".auto") && !player.dataset.touched && !matchMedia("(prefers-reduced-motion: reduce)").matches) play();
  }, { threshold: 0.4 }).observe(player);
}

document.querySelectorAll(".player").forEach(readPlayer);

for (const block of document.querySelectorAll(".get pre")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    getSelection().selectAllChildren(block.querySelector("code"));
    try { await navigator.clipboard.writeText(block.querySelector("code").textContent); button.textContent = "Copied"; } catch { button.textContent = "Press Ctrl+C"; }
  });
  block.append(button);
}

const marks = new Map([...document.querySelectorAll("nav a[href^='#']")].map((a) => [a.hash.slice(1), a]));
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) {
    marks.forEach((a) => a.removeAttribute("aria-current"));
    marks.get(entry.target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-20% 0px -75% 0px" });
document.querySelectorAll("article").forEach((article) => seen.observe(article));

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => { details.open = true; }));
