// Buttons that copy: <button hidden data-copy="id of the text">, and behind it [role=status], which says what was done.
// The address of the service takes the place of what it could only guess: a proxy may have put it under a path.

const copyByHand = (element) => {
  const range = document.createRange();
  range.selectNodeContents(element);
  const selection = getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
  return document.execCommand("copy"); // old, but all that there is where the page came by plain HTTP
};

const copy = async (element) => {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    return copyByHand(element);
  }
};

const root = new URL(document.body.dataset.root || "./", location.href).href.replace(/\/$/, "");
for (const element of document.querySelectorAll("[data-guessed]")) {
  const code = element.querySelector("code");
  code.textContent = code.textContent.replaceAll(element.dataset.guessed, root);
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  const told = button.parentElement.querySelector("[role=status]");
  button.hidden = false;
  button.addEventListener("click", async () => {
    const copied = await copy(document.getElementById(button.dataset.copy));
    told.textContent = copied ? "Copied" : "Selected: press Ctrl+C";
    setTimeout(() => (told.textContent = ""), 4000);
  });
}
